"""The annotations of one image -> its label mask.

A painter's algorithm on one canvas: annotations are drawn one over the other, and the order is the overlap
rule. In ascending class index the result is pixel for pixel that of `np.maximum` over one canvas per
annotation, because the last one drawn is the highest.

Inside the program a label mask holds class indices, (H, W) uint8: 0 background, 255 ignored. Files hold
category ids, see encoding.py.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as coco_mask

from cocoseg.config import CROWDS, OVERLAPS, RASTERIZERS
from cocoseg.errors import CocosegError
from cocoseg.labels import IGNORE_INDEX

_COORDINATE_LIMIT = 1e5  # pixels; pycocotools walks along every outline, and its integers overflow


class Instance(NamedTuple):
    """One annotation, ready to draw."""

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
Shape = Polygons | Runs
_decoder = msgspec.json.Decoder(list[list[float] | float] | _RLE | None)


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
    objects, regions, skipped = _layers(instances, height, width, crowd)
    canvas = PIL.Image.new("L", (width, height))
    for shape in regions:
        _paint(canvas, shape, IGNORE_INDEX, rasterizer)
    if overlap == "ignore":
        return Drawn(_paint_disputed(canvas, objects, rasterizer), skipped)
    # The later one covers the earlier.
    objects.sort(key=lambda pair: (-_area(pair[1]), pair[0]) if overlap == "smallest" else pair[0])
    for class_index, shape in objects:
        _paint(canvas, shape, class_index, rasterizer)
    return Drawn(np.array(canvas), skipped)


def _layers(
    instances: Sequence[Instance], height: int, width: int, crowd: str
) -> tuple[list[tuple[int, Shape]], list[Shape], int]:
    """Objects with their class indices, ignored regions, and how many annotations can't be drawn."""
    objects: list[tuple[int, Shape]] = []
    regions: list[Shape] = []
    skipped = 0
    for instance in instances:
        if instance.crowd and crowd == "skip":
            continue
        shape = parse_segmentation(instance, height, width)
        if shape is None:
            skipped += 1
        elif instance.crowd and crowd == "ignore":
            regions.append(shape)
        else:
            objects.append((instance.class_index, shape))
    return objects, regions, skipped


def parse_segmentation(instance: Instance, height: int, width: int) -> Shape | None:
    """The polygons or runs of an annotation, or None where nothing in it can be drawn.

    Polygon parts of fewer than 3 points or an odd number of coordinates are left out.

    Raises:
        CocosegError: neither polygons nor RLE, coordinates beyond 100,000, an RLE of another size than
            the image's or whose runs don't add up to it.
    """
    name = f"annotation {instance.annotation_id}"
    try:
        found = _decoder.decode(instance.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CocosegError(f"{name}: the segmentation is neither polygons nor RLE ({error})") from error
    if isinstance(found, _RLE):
        return _checked_runs(name, found, height, width)
    return _checked_polygons(name, found or [])


def _checked_polygons(name: str, found: list[list[float] | float]) -> Polygons | None:
    if found and not any(isinstance(part, list) for part in found):
        found = [found]  # a single polygon, not wrapped in a list
    if not all(isinstance(part, list) for part in found):
        raise CocosegError(f"{name}: the segmentation mixes polygons and numbers")
    polygons = [part for part in found if len(part) >= 6 and len(part) % 2 == 0]
    if any(max(map(abs, polygon)) > _COORDINATE_LIMIT for polygon in polygons):
        raise CocosegError(f"{name}: a coordinate lies beyond {_COORDINATE_LIMIT:.0f} pixels")
    return polygons or None


def _checked_runs(name: str, rle: _RLE, height: int, width: int) -> Runs:
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


def _paint(canvas: PIL.Image.Image, shape: Shape, value: int, rasterizer: str) -> None:
    if rasterizer == "pillow" and isinstance(shape, list):
        draw = PIL.ImageDraw.Draw(canvas)
        for polygon in shape:
            draw.polygon(polygon, fill=value)
    else:
        region = _region(shape, canvas.height, canvas.width)
        canvas.paste(value, mask=PIL.Image.fromarray(region))


def _region(shape: Shape, height: int, width: int) -> np.ndarray:
    """The pixels that an annotation covers, by COCO's own rule: (H, W) uint8, 255 there and 0 elsewhere."""
    if isinstance(shape, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        return coco_mask.decode(encoded) * np.uint8(255)
    # pycocotools would do, but it reads memory that it never wrote where runs are odd.
    values = np.zeros(shape.size, dtype=np.uint8)
    values[1::2] = 255
    return np.repeat(values, shape).reshape(width, height).T


def _paint_disputed(canvas: PIL.Image.Image, objects: list[tuple[int, Shape]], rasterizer: str) -> np.ndarray:
    """Draw one layer per class; pixels of several classes become ignored."""
    mask = np.array(canvas)
    claimed = np.zeros(mask.shape, dtype=bool)
    objects = sorted(objects, key=lambda pair: pair[0])
    for class_index, group in itertools.groupby(objects, key=lambda pair: pair[0]):
        layer = PIL.Image.new("L", canvas.size)
        for _, shape in group:
            _paint(layer, shape, 1, rasterizer)
        region = np.asarray(layer) > 0
        mask[region] = class_index
        mask[region & claimed] = IGNORE_INDEX
        claimed |= region
    return mask


def _area(shape: Shape) -> float:
    """Area in pixels: of polygons by the shoelace formula, of runs by their sum."""
    if not isinstance(shape, list):
        return float(shape[1::2].sum())
    total = 0.0
    for polygon in shape:
        x, y = np.asarray(polygon).reshape(-1, 2).T
        total += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return total
