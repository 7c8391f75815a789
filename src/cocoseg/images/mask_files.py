"""Mask files: their names, and lossless writing and reading of label masks."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

import numpy as np
import PIL.Image

from cocoseg.errors import CocosegError
from cocoseg.files import RUN_LENGTHS, read_json, require_regular, save_png, write_json
from cocoseg.images.exif import turn_mask
from cocoseg.labels import IGNORE_INDEX, LabelMap

_NAME_LIMIT = 240  # bytes of a mask's name without its ending; most file systems allow 255
INDICES = range(256)  # value of each class index where a mask holds class indices
REMEDY = "delete it and run prepare.py again"


class MaskRecord(NamedTuple):
    """One image and its mask.

    Attributes:
        image: `file_name`, relative to the image folder.
        mask: path, relative to the folder of the masks.
        pixels: class index -> number of pixels, background (0) and ignored (255) included.
        warnings: warning -> ids of the annotations that it is about.
        overlaps: pixels that each overlap rule hides, see `survey`; None for images outside its sample.
        orientation: EXIF orientation, 1 to 8.
        upright: True where the annotations fit the upright image. The mask has the pixels of the image as
            stored, so that image and mask are turned together.
        doubt: a warning, with the reason for `upright`, where it is not certain.
        bits: number of bits that the values of the image need; 0 where they have no more than 8.
        faults: warnings about parts of the image file that are not read.
    """

    image: str
    mask: str
    pixels: dict[int, int]
    warnings: dict[str, list[int | str | None]]
    overlaps: dict[str, Counter[int]] | None = None
    orientation: int = 1
    upright: bool = False
    doubt: str | None = None
    bits: int = 0
    faults: Sequence[str] = ()

    @property
    def visible(self) -> set[int]:
        """Class indices that have a pixel, without background (0) and ignored (255)."""
        return self.pixels.keys() - {0, IGNORE_INDEX}


def read_png(path: Path, remedy: str = REMEDY) -> np.ndarray:
    """Read the stored pixels of a PNG file that this program has written.

    Raises:
        CocosegError: the file is missing or damaged; `remedy` says what to do.
    """
    try:
        require_regular(path)
        with PIL.Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise CocosegError(f"{path}: not a readable mask ({error}); {remedy}") from error


class MaskEncoding:
    """An encoding of label masks as PNG files. All are lossless.

    | encoding  | file                                 | pixel           | ignored |
    |-----------|--------------------------------------|-----------------|---------|
    | `palette` | 8-bit palette, colors of the labels  | category id     | 255     |
    | `uint16`  | 16-bit grayscale                     | category id     | 65535   |
    | `x100`    | 16-bit grayscale, bright to look at  | 100·category id | 65535   |

    Pixels hold class indices in place of category ids if

    - an id does not fit: it is 0, which is background, or above 254, 65534 or 654;
    - a class consists of several categories, or the classes are not in ascending order of their ids;
    - or the argument `pixel` says so.

    The attribute `pixel` and `labels.json` tell which they hold.
    """

    def __init__(self, encoding: str, labels: LabelMap, pixel: str = "category_id"):
        ids = [label.category_id for label in labels.classes[1:] if label.category_id is not None]
        limit = {"palette": 254, "uint16": 65534, "x100": 654}[encoding]
        # In ascending order, so that a higher class index means a higher category id.
        ascending = len(ids) == len(labels) - 1 and ids == sorted(ids)
        fits = pixel == "category_id" and ascending and ids[0] >= 1 and ids[-1] <= limit
        self.encoding = encoding
        self.labels = labels
        self.pixel = "category_id" if fits else "class_index"
        self.bits = 8 if encoding == "palette" else 16
        self.ignore_value = 255 if self.bits == 8 else 65535
        # Value of each class index in a file name and, times `scale`, in a pixel.
        self._file_values = [0, *(ids if fits else range(1, len(labels)))]
        scale = 100 if encoding == "x100" else 1
        self._values = np.zeros(256, dtype=np.uint8 if self.bits == 8 else np.uint16)
        self._values[: len(labels)] = np.multiply(self._file_values, scale)
        self._values[IGNORE_INDEX] = self.ignore_value
        used = [*range(len(labels)), IGNORE_INDEX]
        self._indices = np.full(1 << self.bits, -1, dtype=np.int16)
        self._indices[self._values[used]] = used
        # All 256 values, because with fewer some readers expect pixels of 4 bits.
        self._palette = np.zeros((256, 3), dtype=np.uint8)
        if self.bits == 8:
            self._palette[self._values[used]] = labels.palette()[used]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the `labels.json` of a prepared folder.

        Raises:
            CocosegError: it is missing or damaged.
        """
        path = folder / "labels.json"
        try:
            content = read_json(path)
            masks = content["masks"]
            return cls(masks["encoding"], LabelMap.from_dict(content), masks["pixel"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CocosegError(f"{path}: not readable ({error}); run prepare.py again") from error

    def save(self, folder: Path) -> None:
        """Write `labels.json`: the classes and the encoding."""
        masks = {"encoding": self.encoding, "pixel": self.pixel, "ignored": self.ignore_value}
        write_json(folder / "labels.json", {**self.labels.to_dict(), "masks": masks})

    def file_name(self, image_name: str, visible: Iterable[int]) -> str:
        """Name a mask: `<stem>_mask_cats_18_58.png`, with the categories visible in it, in ascending order.

        Args:
            image_name: `file_name` of the image; its folders are kept.
            visible: class indices; background (0) and ignored (255) are left out. A list too long for a file
                name is cut, and `_etc` follows.
        """
        image = PurePosixPath(image_name)
        values = [str(self._file_values[i]) for i in sorted(visible) if 0 < i < IGNORE_INDEX] or ["none"]
        name = f"{image.stem}_mask_cats_{'_'.join(values)}"
        while len(os.fsencode(name)) > _NAME_LIMIT and len(values) > 1:
            values.pop()
            name = f"{image.stem}_mask_cats_{'_'.join(values)}_etc"
        return str(image.parent / f"{name}.png")

    @property
    def paint_values(self) -> Sequence[int]:
        """The value to paint for each class index, so that `write_painted` need not translate pixels."""
        return self._values.tolist() if self.bits == 8 else INDICES

    def write(self, mask: np.ndarray, path: Path) -> None:
        """Write a label mask, (H, W) uint8 class indices, as PNG; whole or not at all."""
        self.write_painted(self._values.take(mask) if self.bits == 8 else mask, path)

    def write_painted(self, mask: np.ndarray, path: Path) -> None:
        """Write a mask, (H, W) uint8, that was painted in `paint_values`; whole or not at all."""
        image = PIL.Image.fromarray(mask if self.bits == 8 else self._values.take(mask))
        if self.bits == 8:
            image.putpalette(self._palette.tobytes())
        save_png(path, image, **RUN_LENGTHS)

    def read(self, path: Path, orientation: int = 1) -> np.ndarray:
        """Read a label mask: (H, W) uint8 class indices.

        Args:
            orientation: EXIF orientation by which the mask is turned.

        Raises:
            CocosegError: the file is missing or damaged, or holds a value that is no class of the labels.
        """
        pixels = read_png(path)
        if pixels.ndim != 2 or pixels.dtype != self._values.dtype:
            raise CocosegError(f"{path}: not a mask in the encoding {self.encoding!r}; {REMEDY}")
        indices = self._indices[pixels]
        if (indices < 0).any():
            unknown = np.unique(pixels[indices < 0])[:5].tolist()
            raise CocosegError(f"{path}: pixel values {unknown} are no class of labels.json; {REMEDY}")
        return turn_mask(indices.astype(np.uint8), orientation)
