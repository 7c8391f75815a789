"""Files of the predictions in an output folder: masks, overlays, probabilities, thumbnails of the gallery."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image

from cocoseg.errors import CocosegError
from cocoseg.figures.gallery import has_thumbnails, write_thumbnails
from cocoseg.figures.overlay import overlay, with_legend
from cocoseg.files import save_png, whole_file, write_bytes
from cocoseg.images.mask_files import MaskEncoding, read_png
from cocoseg.inference.manifest import Entry
from cocoseg.inference.probabilities import Probabilities
from cocoseg.resizing import resize_mask

MASKS, OVERLAYS, CONFIDENCE, PROBABILITIES = "masks", "overlays", "confidence", "probabilities"
SUFFIXES = {MASKS: ".png", OVERLAYS: ".jpg", CONFIDENCE: ".png", PROBABILITIES: ".npz"}
LONGEST = 2048  # pixels: longer side of an overlay


@dataclass(frozen=True)
class Results:
    """Writes and reads the files of an image in an output folder.

    Attributes:
        output: the folder.
        encoding: encoding of the masks.
        overlay, gallery: write overlays, and thumbnails for the gallery.
        probabilities: True writes the confidence, `all` also the probabilities of all classes.
    """

    output: Path
    encoding: MaskEncoding
    overlay: bool
    gallery: bool
    probabilities: Literal["all"] | bool = False

    @property
    def folders(self) -> list[str]:
        """Folders in the output folder that hold a file for each image."""
        wanted = (True, self.overlay, self.probabilities, self.probabilities == "all")
        return [name for name, is_wanted in zip(SUFFIXES, wanted, strict=True) if is_wanted]

    def path(self, name: str, folder: str = MASKS) -> Path:
        return self.output / folder / f"{name}{SUFFIXES[folder]}"

    def exist(self, name: str) -> bool:
        """Tell whether all files that are wanted were written under a name."""
        return all(self.path(name, folder).is_file() for folder in self.folders) and (
            not self.gallery or has_thumbnails(self.output, name)
        )

    def remove_others(self, name: str) -> None:
        """Remove the files under a name that the next `write` does not replace."""
        for folder in SUFFIXES.keys() - self.folders:
            self.path(name, folder).unlink(missing_ok=True)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Read the mask, class indices, and the confidence of an image: (H, W) uint8 each.

        Raises:
            CocosegError: one of them is missing or damaged.
        """
        remedy = "delete it and run predict.py again"
        mask, path = self.encoding.read(self.path(name)), self.path(name, CONFIDENCE)
        confidence = read_png(path, remedy)
        if (confidence.shape, confidence.dtype) != (mask.shape, np.uint8):
            raise CocosegError(f"{path}: it does not belong to the mask; {remedy}")
        return mask, confidence

    def canvas(self, image: PIL.Image.Image) -> np.ndarray | None:
        """Shrink an image to draw on: (h, w, 3) uint8, sides up to LONGEST. None if nothing is drawn."""
        if not (self.overlay or self.gallery):
            return None
        image.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.BOX)
        return np.asarray(image)

    def write(
        self, entry: Entry, mask: np.ndarray, canvas: np.ndarray | None, probabilities: Probabilities | None
    ) -> Entry:
        """Write the files of an image. Returns its entry with the number of pixels by class index.

        Args:
            mask: (H, W) uint8 class indices.
            canvas: as `canvas` makes it.
            probabilities: filled in, where they are wanted.
        """
        name, labels = entry.name, self.encoding.labels
        self.encoding.write(mask, self.path(name))
        if canvas is not None:
            small = resize_mask(mask, canvas.shape[:2])
            if self.overlay:
                sheet = with_legend(PIL.Image.fromarray(overlay(canvas, small, labels)), mask, labels)
                buffer = BytesIO()
                sheet.save(buffer, format="JPEG", quality=90)
                write_bytes(self.path(name, OVERLAYS), buffer.getvalue())
            if self.gallery:
                write_thumbnails(self.output, name, canvas, small, labels)
        if probabilities is not None:
            save_png(self.path(name, CONFIDENCE), PIL.Image.fromarray(probabilities.confidence))
            if self.probabilities == "all":
                with whole_file(self.path(name, PROBABILITIES)) as part, part.open("wb") as file:
                    np.savez_compressed(file, probabilities=probabilities.by_class)
        counts = np.bincount(mask.ravel())
        entry.pixels = {index: int(counts[index]) for index in np.flatnonzero(counts).tolist()}
        return entry
