"""Files of the predictions in an output folder: masks, overlays, thumbnails of the gallery."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image

from cocoseg.figures.gallery import has_thumbnails, write_thumbnails
from cocoseg.figures.overlay import overlay, with_legend
from cocoseg.files import write_bytes
from cocoseg.inference.manifest import Entry
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.resizing import resize_mask

MASKS, OVERLAYS = "masks", "overlays"  # folders in the output folder
LONGEST = 2048  # pixels: longer side of an overlay


@dataclass(frozen=True)
class Results:
    """Writes the files of an image.

    Attributes:
        output: the folder.
        encoding: encoding of the masks.
        overlay, gallery: whether overlays, and thumbnails for the gallery, are written.
    """

    output: Path
    encoding: MaskEncoding
    overlay: bool
    gallery: bool

    def mask(self, name: str) -> Path:
        return self.output / MASKS / f"{name}.png"

    def exist(self, name: str) -> bool:
        """Whether all files that are wanted were written under a name."""
        return (
            self.mask(name).is_file()
            and (not self.overlay or self._overlay(name).is_file())
            and (not self.gallery or has_thumbnails(self.output, name))
        )

    def canvas(self, image: PIL.Image.Image) -> np.ndarray | None:
        """Shrink an image to draw on: (h, w, 3) uint8, sides of LONGEST at most. None if nothing is drawn."""
        if not (self.overlay or self.gallery):
            return None
        image.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.BOX)
        return np.asarray(image)

    def write(self, entry: Entry, mask: np.ndarray, canvas: np.ndarray | None) -> Entry:
        """Write the files of an image. Returns its entry with the number of pixels by class index.

        Args:
            mask: (H, W) uint8 class indices.
            canvas: as `canvas` makes it.
        """
        name, labels = entry.name, self.encoding.labels
        self.encoding.write(mask, self.mask(name))
        if canvas is not None:
            small = resize_mask(mask, canvas.shape[:2])
            if self.overlay:
                sheet = with_legend(PIL.Image.fromarray(overlay(canvas, small, labels)), mask, labels)
                buffer = BytesIO()
                sheet.save(buffer, format="JPEG", quality=90)
                write_bytes(self._overlay(name), buffer.getvalue())
            if self.gallery:
                write_thumbnails(self.output, name, canvas, small, labels)
        counts = np.bincount(mask.ravel())
        entry.pixels = {index: int(counts[index]) for index in np.flatnonzero(counts).tolist()}
        return entry

    def _overlay(self, name: str) -> Path:
        return self.output / OVERLAYS / f"{name}.jpg"
