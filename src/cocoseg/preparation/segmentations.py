"""The `segmentation` fields of annotations -> checked polygons and runs, in the order of the file.

A malformed field is an error. Faults that many programs pass over in silence are warnings.
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from operator import mul
from typing import Annotated, NamedTuple, Self

import msgspec
import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.images.regions import CORNER
from cocoseg.labels import IGNORE_INDEX

# Warnings about annotations.
LEFT_OUT = "no outline, or polygons of fewer than 3 points or an odd number of coordinates, left out"
OUTSIDE = "coordinates outside the image"
NORMALIZED = "coordinates between 0 and 1, drawn as pixels, but probably shares of the image"

AnnotationId = int | str | None

_COORDINATE_LIMIT = 1e5  # pixels; a coordinate beyond it is a mistake, and far beyond it integers overflow


class SegmentationError(CocosegError):
    """A malformed segmentation; the message names the annotation, not the file."""


class Instance(NamedTuple):
    """One annotation to be drawn.

    Attributes:
        class_index: 255 for a region that is ignored.
        segmentation: JSON, as in the annotation file.
        fault: a warning about it.
    """

    annotation_id: AnnotationId
    class_index: int
    crowd: bool
    segmentation: bytes
    fault: str | None = None


class _RLE(msgspec.Struct, gc=False):
    size: tuple[int, int]  # height, width
    counts: list[int] | str  # a string is COCO's compressed form


Polygons = list[list[float]]  # parts, each [x0, y0, x1, y1, ...] in pixels
Runs = np.ndarray  # int64, lengths of runs down the columns, background first
_Coordinate = Annotated[float, msgspec.Meta(ge=-_COORDINATE_LIMIT, le=_COORDINATE_LIMIT)]
_decoder = msgspec.json.Decoder(list[list[_Coordinate]] | _RLE | None)
_flat_decoder = msgspec.json.Decoder(list[_Coordinate])


@dataclass(frozen=True)
class Shape:
    """The pixels that an annotation covers.

    Attributes:
        annotation_id, class_index: of the annotation.
        outline: polygons, or runs; an empty list where there is nothing to draw.
        fault: a warning about the annotation.
    """

    annotation_id: AnnotationId
    class_index: int
    outline: Polygons | Runs
    fault: str | None = None

    @cached_property
    def area(self) -> float:
        """Area in pixels: of polygons by the shoelace formula, of runs their sum."""
        if isinstance(self.outline, list):
            return sum(map(_polygon_area, self.outline))
        return float(self.outline[1::2].sum())


@dataclass(frozen=True)
class Layers:
    """The annotations of one image.

    Attributes:
        height, width: of the image, in pixels.
        shapes: in the order of the file; those of class index 255 are drawn first.
    """

    height: int
    width: int
    shapes: list[Shape]

    def warnings(self) -> dict[str, list[AnnotationId]]:
        """Find faults: warning -> ids of the annotations that it is about."""
        found: dict[str, list[AnnotationId]] = defaultdict(list)
        for shape in self.shapes:
            if shape.fault is not None:
                found[shape.fault].append(shape.annotation_id)
            polygons = shape.outline if isinstance(shape.outline, list) else []
            if any(
                min(part) < 0 or max(part[0::2]) > self.width or max(part[1::2]) > self.height
                for part in polygons
            ):
                found[OUTSIDE].append(shape.annotation_id)
            if is_normalized(polygons, self.height, self.width):
                found[NORMALIZED].append(shape.annotation_id)
        return dict(found)

    def scale_to(self, width: int, height: int) -> Self:
        """Scale the shapes to an image of another size.

        Raises:
            SegmentationError: a shape is an RLE, which can't be scaled.
        """
        factors = width / self.width, height / self.height
        shapes = []
        for shape in self.shapes:
            if not isinstance(shape.outline, list):
                raise SegmentationError(
                    f"annotation {shape.annotation_id}: an RLE can't be scaled; data.exif=ignore "
                    "leaves images as they are stored"
                )
            outline = [
                [value * factors[place % 2] for place, value in enumerate(part)] for part in shape.outline
            ]
            shapes.append(replace(shape, outline=outline))
        return type(self)(height, width, shapes)


def is_normalized(polygons: Polygons, height: int, width: int) -> bool:
    """Tell whether coordinates look like shares of width and height: all within 0..1, and not all whole."""
    if max(height, width) <= 2 or polygons in ([], [CORNER]):
        return False
    return lies_within_one(polygons) and any(value % 1 for part in polygons for value in part)


def lies_within_one(polygons: Polygons) -> bool:
    """Tell whether all coordinates lie within 0..1, or a little beyond it by rounding."""
    return all(-0.01 <= value <= 1.01 for part in polygons for value in part)


def parse_layers(instances: Iterable[Instance], height: int, width: int, crowd: str) -> Layers:
    """Parse the annotations of an image of this size in pixels, by the rule `crowd` of `MasksConfig`.

    Raises:
        SegmentationError: a segmentation is malformed.
    """
    shapes = []
    for instance in instances:
        if instance.crowd and crowd == "skip":
            continue
        if instance.crowd and crowd == "ignore":
            instance = instance._replace(class_index=IGNORE_INDEX)
        shapes.append(parse_segmentation(instance, height, width))
    return Layers(height, width, shapes)


def parse_segmentation(instance: Instance, height: int, width: int) -> Shape:
    """Parse the segmentation of an annotation.

    Polygons of fewer than 3 points or an odd number of coordinates are left out.

    Raises:
        SegmentationError: it is neither polygons nor RLE, a coordinate lies beyond 100,000, or an RLE has
            another size than the image or runs that don't add up to it.
    """
    found = _decode(instance)
    number, index = instance.annotation_id, instance.class_index
    if isinstance(found, _RLE):
        return Shape(number, index, _read_runs(number, found, height, width), instance.fault)
    polygons = [part for part in found if len(part) >= 6 and not len(part) % 2]
    return Shape(number, index, polygons, None if len(polygons) == max(1, len(found)) else LEFT_OUT)


def _decode(instance: Instance) -> Polygons | _RLE:
    try:
        return _decoder.decode(instance.segmentation) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return [_flat_decoder.decode(instance.segmentation)]  # one polygon, not wrapped in a list
        reason = f"the segmentation is neither polygons nor RLE ({error})"
        if str(_COORDINATE_LIMIT) in str(error):
            reason = f"a coordinate lies beyond {_COORDINATE_LIMIT:.0f} pixels"
        raise SegmentationError(f"annotation {instance.annotation_id}: {reason}") from error


def _read_runs(annotation_id: AnnotationId, rle: _RLE, height: int, width: int) -> Runs:
    if rle.size != (height, width):
        raise SegmentationError(
            f"annotation {annotation_id}: the RLE is {rle.size[1]}x{rle.size[0]} pixels (width x height), "
            f"its image {width}x{height}"
        )
    pixels = height * width
    if isinstance(rle.counts, str):
        runs = rle_runs(rle.counts)
    else:
        sane = all(0 <= run <= pixels for run in rle.counts)
        runs = np.array(rle.counts if sane else [], dtype=np.int64)
    if runs.size == 0 or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise SegmentationError(
            f"annotation {annotation_id}: the runs of the RLE don't add up to {width}x{height} pixels"
        )
    return runs


def rle_runs(counts: str) -> Runs:
    """Decode a compressed RLE string: (n,) int64; empty where it is malformed.

    A character holds five bits, the lowest first, and a continuation bit. The highest bit of a number is its
    sign. From the fourth on, numbers are differences to the run before the last.
    Source: `rleFrString` in pycocotools' maskApi.c.
    """
    codes = np.frombuffer(counts.encode(errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return np.empty(0, np.int64)
    last = (codes & 0x20) == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    position = np.arange(codes.size) - np.repeat(starts, np.diff(np.append(starts, codes.size)))
    if position.max() > 7:  # 40 bits: far beyond any image
        return np.empty(0, np.int64)
    values = np.add.reduceat((codes & 0x1F) << (5 * position), starts)
    bits = 5 * (position[last] + 1)
    values -= np.where(codes[last] & 0x10, 1 << bits, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _polygon_area(polygon: list[float]) -> float:
    x, y = polygon[0::2], polygon[1::2]
    # Plain sums: polygons are short, and numpy would take longer to convert them.
    ahead = sum(map(mul, x, y[1:])) + x[-1] * y[0]
    behind = sum(map(mul, y, x[1:])) + y[-1] * x[0]
    return abs(ahead - behind) / 2
