"""The annotations of one image -> its label mask.

A painter's algorithm on one canvas: annotations are drawn one over the other, and the order is the overlap
rule. In ascending class index the result is pixel for pixel that of `np.maximum` over one canvas per
annotation, because the last one drawn is the highest.

Inside the program a label mask holds class indices, (H, W) uint8: 0 background, 255 ignored. Files hold
category ids, see encoding.py.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from operator import mul
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as coco_mask

from cocoseg.config import CROWDS, OVERLAPS, RASTERIZERS
from cocoseg.errors import CocosegError
from cocoseg.labels import IGNORE_INDEX

INDICES = range(256)  # class indices as they are
# Warnings: faults of an annotation that are no errors.
BROKEN = "polygons of fewer than 3 points or an odd number of coordinates, left out"
EMPTY = "nothing to draw, skipped"
OUTSIDE = "coordinates outside the image"
FLAT = "an area of zero"

_COORDINATE_LIMIT = 1e5  # pixels; pycocotools walks along every outline, and its integers overflow


class Instance(NamedTuple):
    """One annotation, ready to draw; `class_index` 255 makes it an ignored region."""

    annotation_id: int
    class_index: int
    crowd: bool
    segmentation: bytes  # JSON, as in the annotation file


class Drawn(NamedTuple):
    """A label mask and what could not be drawn on it."""

    mask: np.ndarray  # (H, W) uint8 class indices
    skipped: int  # annotations without a usable segmentation


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
    """What an annotation covers.

    Attributes:
        annotation_id, class_index: whose.
        outline: polygons, none where there is nothing to draw, or runs.
        broken: parts were left out, of fewer than 3 points or an odd number of coordinates.
    """

    annotation_id: int
    class_index: int
    outline: Polygons | Runs
    broken: bool = False

    @cached_property
    def area(self) -> float:
        """In pixels: of polygons by the shoelace formula, of runs by their sum."""
        if isinstance(self.outline, list):
            return sum(map(_polygon_area, self.outline))
        return float(self.outline[1::2].sum())

    def is_outside(self, height: int, width: int) -> bool:
        """Whether a part of it lies outside an image of this size."""
        return isinstance(self.outline, list) and any(
            min(part) < 0 or max(part[0::2]) > width or max(part[1::2]) > height for part in self.outline
        )


@dataclass(frozen=True)
class Layers:
    """The annotations of one image, to be drawn in an order.

    Attributes:
        regions: ignored pixels, beneath everything else.
        objects: in the order of the file.
        skipped: ids of annotations of which nothing can be drawn.
        broken: ids of those of which a part can't be: fewer than 3 points, or an odd number of coordinates.
    """

    regions: list[Shape] = field(default_factory=list)
    objects: list[Shape] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def warnings(self, height: int, width: int) -> dict[str, list[int]]:
        """Warning -> ids of the annotations that it is about."""
        shapes = [*self.regions, *self.objects]
        found = {
            BROKEN: self.broken,
            EMPTY: self.skipped,
            OUTSIDE: [shape.annotation_id for shape in shapes if shape.is_outside(height, width)],
            FLAT: [shape.annotation_id for shape in shapes if shape.area == 0],
        }
        return {what: ids for what, ids in found.items() if ids}


def draw_mask(
    instances: Sequence[Instance],
    height: int,
    width: int,
    *,
    overlap: str = "max",
    rasterizer: str = "pillow",
    crowd: str = "ignore",
) -> Drawn:
    """Draw the annotations of one image.

    Args:
        instances: its annotations.
        height, width: its size in pixels.
        overlap: whose pixel it is where annotations overlap: `max` the higher category id's, `smallest` that
            of the smaller area, `ignore` nobody's where the categories differ.
        rasterizer: how polygons are filled: `pillow`, or `coco` as COCO's own evaluation does.
        crowd: crowd regions become ignored pixels beneath the instances (`ignore`), are drawn as any other
            annotation (`draw`), or are left out (`skip`).

    Raises:
        ValueError: an unknown rule.
        CocosegError: a segmentation is malformed; the message names the annotation.
    """
    for rule, known in ((overlap, OVERLAPS), (rasterizer, RASTERIZERS), (crowd, CROWDS)):
        if rule not in known:
            raise ValueError(f"{rule!r} is none of {known}")
    layers = parse_layers(instances, height, width, crowd)
    return Drawn(paint(layers, height, width, overlap, rasterizer), len(layers.skipped))


def parse_layers(instances: Iterable[Instance], height: int, width: int, crowd: str) -> Layers:
    """Read the segmentations of one image; arguments and errors as of `draw_mask`."""
    layers = Layers()
    for instance in instances:
        if instance.crowd and crowd == "skip":
            continue
        shape = parse_segmentation(instance, height, width)
        if shape.broken:
            layers.broken.append(shape.annotation_id)
        if isinstance(shape.outline, list) and not shape.outline:
            layers.skipped.append(shape.annotation_id)
        elif shape.class_index == IGNORE_INDEX or (instance.crowd and crowd == "ignore"):
            layers.regions.append(shape)
        else:
            layers.objects.append(shape)
    return layers


def paint(
    layers: Layers,
    height: int,
    width: int,
    overlap: str,
    rasterizer: str,
    values: Sequence[int] = INDICES,
) -> np.ndarray:
    """Draw what was read.

    Args:
        layers: the annotations of the image.
        height, width, overlap, rasterizer: as of `draw_mask`.
        values: what to draw for each class index; 255 for 255.

    Returns:
        (H, W) uint8: class indices, or what `values` has for them.
    """
    canvas = Canvas(height, width, rasterizer)
    for region in layers.regions:
        canvas.draw(region, IGNORE_INDEX)
    if overlap == "smallest":
        objects = sorted(layers.objects, key=lambda shape: (-shape.area, shape.class_index))
    else:
        objects = sorted(layers.objects, key=lambda shape: shape.class_index)
    for shape in objects:  # the later one covers the earlier
        canvas.draw(shape, values[shape.class_index])
    if overlap == "ignore":
        lowest = _lowest(layers, height, width, rasterizer, values)
        canvas.pixels[canvas.pixels != lowest] = IGNORE_INDEX
    return canvas.pixels


def _lowest(layers: Layers, height: int, width: int, rasterizer: str, values: Sequence[int]) -> np.ndarray:
    """The mask with the lowest class on top: unlike the one by `max` wherever several classes overlap."""
    canvas = Canvas(height, width, rasterizer)
    for region in layers.regions:
        canvas.draw(region, IGNORE_INDEX)
    for shape in sorted(layers.objects, key=lambda shape: -shape.class_index):
        canvas.draw(shape, values[shape.class_index])
    return canvas.pixels


class Canvas:
    """A mask to draw on.

    Attributes:
        pixels: (H, W) uint8, zeros to begin with.
    """

    def __init__(self, height: int, width: int, rasterizer: str):
        self.pixels = np.zeros((height, width), dtype=np.uint8)
        self._rasterizer = rasterizer
        # Pillow draws in the memory of the array: no copy to it, none back.
        image = PIL.Image.frombuffer("L", (width, height), self.pixels, "raw", "L", 0, 1)
        image.readonly = 0
        self._pillow = PIL.ImageDraw.Draw(image)

    def draw(self, shape: Shape, value: int) -> None:
        """Set the pixels of a shape."""
        if isinstance(shape.outline, list) and self._rasterizer == "pillow":
            for polygon in shape.outline:
                self._pillow.polygon(polygon, fill=value)
        else:
            np.copyto(self.pixels, value, where=_region(shape.outline, *self.pixels.shape))


def parse_segmentation(instance: Instance, height: int, width: int) -> Shape:
    """The shape of an annotation; polygon parts of fewer than 3 points or an odd number of coordinates are
    left out.

    Raises:
        CocosegError: neither polygons nor RLE, coordinates beyond 100,000, an RLE of another size than
            the image's or whose runs don't add up to it.
    """
    found = _decode(instance)
    if isinstance(found, _RLE):
        return Shape(
            instance.annotation_id, instance.class_index, _checked_runs(instance, found, height, width)
        )
    polygons = [part for part in found if len(part) >= 6 and not len(part) % 2]
    broken = len(polygons) < len(found)
    return Shape(instance.annotation_id, instance.class_index, polygons, broken)


def _decode(instance: Instance) -> Polygons | _RLE:
    try:
        return _decoder.decode(instance.segmentation) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return [_flat_decoder.decode(instance.segmentation)]  # one polygon, not wrapped in a list
        if str(_COORDINATE_LIMIT) in str(error):
            reason = f"a coordinate lies beyond {_COORDINATE_LIMIT:.0f} pixels"
        else:
            reason = f"the segmentation is neither polygons nor RLE ({error})"
        raise CocosegError(f"annotation {instance.annotation_id}: {reason}") from error


def _checked_runs(instance: Instance, rle: _RLE, height: int, width: int) -> Runs:
    name = f"annotation {instance.annotation_id}"
    if rle.size != (height, width):
        raise CocosegError(
            f"{name}: the RLE is {rle.size[1]}x{rle.size[0]} pixels (width x height), "
            f"its image {width}x{height}"
        )
    pixels = height * width
    if isinstance(rle.counts, str):
        runs = rle_runs(rle.counts)
    else:
        sane = all(0 <= run <= pixels for run in rle.counts)
        runs = np.array(rle.counts if sane else [], dtype=np.int64)
    if runs.size == 0 or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise CocosegError(f"{name}: the runs of the RLE don't add up to {width}x{height} pixels")
    return runs


def rle_runs(counts: str) -> Runs:
    """The runs in a compressed RLE string; none where it is malformed.

    Five bits a character, low ones first, with a continuation bit and a sign; from the fourth run on,
    the difference to the run before the last. Source: `rleFrString` in pycocotools' maskApi.c.
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


def _region(outline: Polygons | Runs, height: int, width: int) -> np.ndarray:
    """The pixels that an annotation covers, by COCO's own rule: (H, W) bool."""
    if isinstance(outline, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
        return coco_mask.decode(encoded).view(bool)
    # pycocotools would do, but it reads memory that it never wrote where runs are odd.
    values = np.zeros(outline.size, dtype=bool)
    values[1::2] = True
    return np.repeat(values, outline).reshape(width, height).T


def _polygon_area(polygon: list[float]) -> float:
    x, y = polygon[0::2], polygon[1::2]
    # Plain sums: polygons are short, and numpy would take longer to convert them.
    ahead = sum(map(mul, x, y[1:])) + x[-1] * y[0]
    behind = sum(map(mul, y, x[1:])) + y[-1] * x[0]
    return abs(ahead - behind) / 2
