"""What is on one image: pixels per class, what each overlap rule hides, doubtful annotations."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cocoseg.config import OVERLAPS
from cocoseg.labels import IGNORE_INDEX
from cocoseg.rasterize import Canvas, Layers, Polygons, Shape, contested, paint

# What may be wrong with an annotation that is no error.
BROKEN = "polygons of fewer than 3 points or an odd number of coordinates, left out"
EMPTY = "nothing to draw, skipped"
OUTSIDE = "coordinates outside the image"
FLAT = "an area of zero"


@dataclass(frozen=True)
class Survey:
    """Figures of one image; classes by index.

    Attributes:
        pixels: of the mask, background (0) and ignored (255) included.
        covered: pixels that the objects of a class cover, whichever class lies on top.
        hidden: overlap rule -> of those, the pixels that the rule gives to another class or ignores.
        doubts: what may be wrong -> ids of annotations.
    """

    pixels: dict[int, int]
    covered: dict[int, int] = field(default_factory=dict)
    hidden: dict[str, dict[int, int]] = field(default_factory=dict)
    doubts: dict[str, list[int]] = field(default_factory=dict)


def survey(layers: Layers, mask: np.ndarray, overlap: str, rasterizer: str) -> Survey:
    """Survey an image.

    Args:
        layers: its annotations.
        mask: (H, W) uint8, drawn from them with these rules.
    """
    classes = sorted({shape.class_index for shape in layers.objects})
    pixels = {index: count for index in (*classes, IGNORE_INDEX) if (count := _count(mask, index))}
    if background := mask.size - sum(pixels.values()):
        pixels[0] = background
    doubts = {what: ids for what, ids in _doubts(layers, *mask.shape) if ids}
    if len(classes) < 2:
        return Survey(pixels, {index: pixels[index] for index in classes if index in pixels}, {}, doubts)
    covered, hidden = _overlaps(layers, classes, mask, overlap, rasterizer)
    return Survey(pixels, covered, hidden, doubts)


def _overlaps(
    layers: Layers, classes: list[int], mask: np.ndarray, overlap: str, rasterizer: str
) -> tuple[dict[int, int], dict[str, dict[int, int]]]:
    """Pixels covered by each class, and those hidden by each rule."""
    masks = {overlap: mask}
    if overlap != "max":
        masks["max"] = paint(layers, *mask.shape, "max", rasterizer)
    spots = np.flatnonzero(contested(layers, masks["max"], rasterizer))
    covered = {index: _count(masks["max"], index) for index in classes}
    if not spots.size:
        return {index: count for index, count in covered.items() if count}, {}
    if overlap != "smallest":
        masks["smallest"] = paint(layers, *mask.shape, "smallest", rasterizer)
    given = {rule: drawn.ravel()[spots] for rule, drawn in masks.items()}
    given["ignore"] = np.full(spots.size, IGNORE_INDEX, dtype=np.uint8)
    hidden: dict[str, dict[int, int]] = {rule: {} for rule in OVERLAPS}
    for index in classes:
        canvas = Canvas(*mask.shape, rasterizer)
        for shape in layers.objects:
            if shape.class_index == index:
                canvas.draw(shape, 1)
        claims = _count(canvas.pixels.ravel()[spots], 1)
        covered[index] += claims - _count(given["max"], index)
        for rule in OVERLAPS:
            if lost := claims - _count(given[rule], index):
                hidden[rule][index] = lost
    return {index: count for index, count in covered.items() if count}, hidden


def _count(pixels: np.ndarray, value: int) -> int:
    return int(np.count_nonzero(pixels == value))


def _doubts(layers: Layers, height: int, width: int) -> Iterator[tuple[str, list[int]]]:
    shapes = [*layers.regions, *layers.objects]
    yield BROKEN, layers.broken
    yield EMPTY, layers.skipped
    yield OUTSIDE, [shape.annotation_id for shape in shapes if _is_outside(shape, height, width)]
    yield FLAT, [shape.annotation_id for shape in shapes if shape.area == 0]


def _is_outside(shape: Shape, height: int, width: int) -> bool:
    if not isinstance(shape.outline, list):
        return False
    parts: Polygons = shape.outline
    return any(min(part) < 0 or max(part[0::2]) > width or max(part[1::2]) > height for part in parts)
