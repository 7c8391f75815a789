"""The segments of an image in a COCO panoptic file: their entries, and their pixels in its PNG.

Format: https://cocodataset.org/#format-data (panoptic). A pixel (R, G, B) of the PNG belongs to the segment
whose id is R + 256 G + 65536 B, or to none (void) where that is 0.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.images.image_files import open_image
from cocoseg.labels import IGNORE_INDEX
from cocoseg.preparation.segmentations import Instance

IN_PNG = msgspec.Raw(b'"in a PNG"')  # placeholder of a segmentation, which `Segments` reads
# Warnings.
NO_PIXEL = "segments without a pixel in the PNG"
UNLISTED = "ids in the PNG that segments_info does not list, ignored"

_MODES = ("RGB", "RGBA", "P", "L")  # programs that compress PNG files turn RGB into palettes and gray


class Segment(msgspec.Struct, frozen=True, gc=False):
    """An entry of `segments_info`."""

    id: Annotated[int, msgspec.Meta(ge=1, lt=2**24)]
    category_id: int
    area: float
    iscrowd: int | bool = 0


class PanopticEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of `annotations`: one image."""

    image_id: int
    file_name: str
    segments_info: list[Segment]


@dataclass(frozen=True)
class Segments:
    """The segments of one image as instances; each iteration over them reads the PNG.

    Attributes:
        png: path of the PNG.
        size: width and height of the image, in pixels.
        listed: ids of all segments of the image.
        chosen: segments to draw; their `annotation_id` is the id of the segment.
    """

    png: Path
    size: tuple[int, int]
    listed: Collection[int]
    chosen: Sequence[Instance]

    def __iter__(self) -> Iterator[Instance]:
        """Yield the chosen segments with their pixels as RLE; void and unlisted ids are one ignored region.

        Raises:
            CocosegError: the PNG can't be read, has another size, or has none of the ids.
        """
        ids = self._read()
        flat = ids.T.ravel()  # RLE goes down the columns
        starts = np.append(0, np.flatnonzero(np.diff(flat)) + 1)
        ends, values = np.append(starts[1:], flat.size), flat[starts]

        def encode(mine: np.ndarray) -> bytes:
            edges = np.column_stack((starts[mine], ends[mine])).ravel()
            runs: np.ndarray = np.diff(edges, prepend=0, append=flat.size)
            return msgspec.json.encode({"size": ids.shape, "counts": runs.tolist()})

        unlisted = ~np.isin(values, list(self.listed))
        if self.listed and unlisted.all():
            raise CocosegError(
                f"{self.png}: none of its ids is in the segments_info of its image; is it of another file?"
            )
        others = values[unlisted & (values > 0)]
        name = f"{self.png.name}:{others.min()}" if others.size else self.png.name
        yield Instance(name, IGNORE_INDEX, False, encode(unlisted), UNLISTED if others.size else None)
        order = np.argsort(values, kind="stable")
        for segment in self.chosen:
            number = int(segment.annotation_id or 0)
            mine = order[slice(*np.searchsorted(values, (number, number + 1), sorter=order))]
            name, fault = f"{self.png.name}:{number}", None if mine.size else NO_PIXEL
            yield segment._replace(annotation_id=name, segmentation=encode(mine), fault=fault)

    def _read(self) -> np.ndarray:
        """Read the ids, (H, W) uint32."""
        with open_image(self.png) as image:
            if image.size != self.size:  # read from the header, so that a huge one is never decoded
                found, listed = ("x".join(map(str, size)) for size in (image.size, self.size))
                raise CocosegError(f"{self.png}: {found} pixels (width x height), its image {listed}")
            if image.format != "PNG" or image.mode not in _MODES:
                raise CocosegError(f"{self.png}: not an RGB PNG, but {image.format} of mode {image.mode}")
            return np.asarray(image.convert("RGBX")).view("<u4")[..., 0] & 0xFFFFFF
