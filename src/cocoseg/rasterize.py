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

_COORDINATE_LIMIT = 1e6  # pixels; beyond it a rasterizer's integers overflow


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


class RLE(msgspec.Struct, gc=False):
    size: tuple[int, int]  # height, width
    counts: list[int] | str  # runs down the columns, background first; a string is COCO's compressed form


Polygons = list[list[float]]  # parts, each [x0, y0, x1, y1, ...] in pixels
_segmentation = msgspec.json.Decoder(list[list[float] | float] | RLE | None)


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
    objects: list[tuple[int, Polygons | RLE]] = []
    regions: list[Polygons | RLE] = []
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
    canvas = PIL.Image.new("L", (width, height))
    for shape in regions:
        _paint(canvas, shape, IGNORE_INDEX, rasterizer)
    if overlap == "ignore":
        return Drawn(_paint_disputed(canvas, objects, rasterizer), skipped)
    if overlap == "smallest":
        objects.sort(key=lambda pair: (-_area(pair[1]), pair[0]))
    else:
        objects.sort(key=lambda pair: pair[0])
    for class_index, shape in objects:
        _paint(canvas, shape, class_index, rasterizer)
    return Drawn(np.array(canvas), skipped)


def parse_segmentation(instance: Instance, height: int, width: int) -> Polygons | RLE | None:
    """The polygons or RLE of an annotation, or None where nothing in it can be drawn.

    Polygon parts of fewer than 3 points or an odd number of coordinates are left out.

    Raises:
        CocosegError: neither polygons nor RLE, coordinates beyond a million, an RLE of another size than
            the image's or whose runs don't add up to it.
    """
    name = f"annotation {instance.annotation_id}"
    try:
        shape = _segmentation.decode(instance.segmentation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CocosegError(f"{name}: the segmentation is neither polygons nor RLE ({error})") from error
    if shape is None:
        return None
    if isinstance(shape, RLE):
        _check_rle(name, shape, height, width)
        return shape
    parts = [shape] if shape and not isinstance(shape[0], list) else shape
    if any(not isinstance(part, list) for part in parts) and parts != [shape]:
        raise CocosegError(f"{name}: the segmentation mixes polygons and numbers")
    polygons = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
    for polygon in polygons:
        if isinstance(polygon[0], list) or max(map(abs, polygon)) > _COORDINATE_LIMIT:
            raise CocosegError(
                f"{name}: a coordinate is no number of pixels (beyond {_COORDINATE_LIMIT:.0f})"
            )
    return polygons or None


def _check_rle(name: str, rle: RLE, height: int, width: int) -> None:
    if rle.size != (height, width):
        raise CocosegError(
            f"{name}: the RLE is {rle.size[1]}x{rle.size[0]} pixels (width x height), "
            f"its image {width}x{height}"
        )
    runs = rle_runs(rle.counts) if isinstance(rle.counts, str) else np.asarray(rle.counts, dtype=np.float64)
    # pycocotools itself reads memory that it never wrote where runs end early.
    if runs.size == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise CocosegError(f"{name}: the runs of the RLE don't add up to {width}x{height} pixels")


def rle_runs(counts: str) -> np.ndarray:
    """The run lengths in a compressed RLE string, int64.

    Five bits a character, low ones first, with a continuation bit and a sign; from the fourth run on,
    the difference to the run before the last. Source: `rleFrString` in pycocotools' maskApi.c.
    """
    codes = np.frombuffer(counts.encode(), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        return np.empty(0, np.int64)
    last = (codes & 0x20) == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    position = np.arange(codes.size) - np.repeat(starts, np.diff(np.append(starts, codes.size)))
    if position.max() > 7:
        return np.empty(0, np.int64)
    values = np.add.reduceat((codes & 0x1F) << (5 * position), starts)
    bits = 5 * (position[last] + 1)
    values -= np.where(codes[last] & 0x10, 1 << bits, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _paint(canvas: PIL.Image.Image, shape: Polygons | RLE, value: int, rasterizer: str) -> None:
    if rasterizer == "pillow" and not isinstance(shape, RLE):
        draw = PIL.ImageDraw.Draw(canvas)
        for polygon in shape:
            draw.polygon(polygon, fill=value)
    else:
        region = _region(shape, canvas.height, canvas.width)
        canvas.paste(value, mask=PIL.Image.fromarray(region * np.uint8(255)))


def _region(shape: Polygons | RLE, height: int, width: int) -> np.ndarray:
    """Which pixels the annotation covers by COCO's own rule: (H, W) uint8 of 0 and 1."""
    if not isinstance(shape, RLE):
        encoded = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    elif isinstance(shape.counts, str):
        encoded = {"size": [height, width], "counts": shape.counts.encode()}
    else:
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": shape.counts}, height, width)
    return coco_mask.decode(encoded)


def _paint_disputed(
    canvas: PIL.Image.Image, objects: list[tuple[int, Polygons | RLE]], rasterizer: str
) -> np.ndarray:
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


def _area(shape: Polygons | RLE) -> float:
    """Area in pixels: of the polygons by the shoelace formula, of an RLE by its runs."""
    if isinstance(shape, RLE):
        runs = rle_runs(shape.counts) if isinstance(shape.counts, str) else shape.counts
        return float(sum(runs[1::2]))
    total = 0.0
    for polygon in shape:
        x, y = np.asarray(polygon).reshape(-1, 2).T
        total += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return total
