"""What is on one image: pixels per class, what each overlap rule hides, doubtful annotations."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cocoseg.config import OVERLAPS
from cocoseg.labels import IGNORE_INDEX
from cocoseg.rasterize import INDICES, Canvas, Layers, Polygons, Shape, paint

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


def survey(
    layers: Layers, mask: np.ndarray, overlap: str, rasterizer: str, values: Sequence[int] = INDICES
) -> Survey:
    """Survey an image.

    Args:
        layers: its annotations.
        mask: (H, W) uint8, painted from them with these rules and values.
    """
    doubts = {what: ids for what, ids in _doubts(layers, *mask.shape) if ids}
    classes = sorted({shape.class_index for shape in layers.objects})
    layer_of = {index: _layer(layers, index, mask.shape, rasterizer) for index in classes}
    covered = {index: int(np.count_nonzero(layer)) for index, layer in layer_of.items()}
    claims = _total(layer_of.values(), mask.shape)
    spots = np.flatnonzero(claims > 1)
    hidden = (
        _hidden(layers, layer_of, spots, {overlap: mask.ravel()[spots]}, values, rasterizer)
        if spots.size
        else {}
    )
    lost = hidden.get(overlap, {})
    pixels = {index: covered[index] - lost.get(index, 0) for index in classes}
    if layers.regions or overlap == "ignore":
        pixels[IGNORE_INDEX] = _count(mask, IGNORE_INDEX)
    pixels[0] = mask.size - sum(pixels.values())
    return Survey(_some(pixels), _some(covered), hidden, doubts)


def _total(layers: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """How many classes claim each pixel: (H, W) uint8."""
    total = np.zeros(shape, dtype=np.uint8)
    for layer in layers:
        total += layer
    return total


def _some(counts: dict[int, int]) -> dict[int, int]:
    return {index: count for index, count in counts.items() if count}


def _layer(layers: Layers, index: int, shape: tuple[int, int], rasterizer: str) -> np.ndarray:
    """What the objects of one class cover: (H, W) bool."""
    canvas = Canvas(*shape, rasterizer)
    for drawn in layers.objects:
        if drawn.class_index == index:
            canvas.draw(drawn, 1)
    return canvas.pixels.view(bool)


def _hidden(
    layers: Layers,
    layer_of: dict[int, np.ndarray],
    spots: np.ndarray,
    drawn: dict[str, np.ndarray],
    values: Sequence[int],
    rasterizer: str,
) -> dict[str, dict[int, int]]:
    """Overlap rule -> class -> pixels that it loses; only at the spots where several classes are.

    Args:
        drawn: rule -> what its mask has at the spots, as far as it is drawn already.
    """
    drawn["ignore"] = np.full(spots.size, IGNORE_INDEX, dtype=np.uint8)
    height, width = next(iter(layer_of.values())).shape
    for rule in ("max", "smallest"):
        if rule not in drawn:
            drawn[rule] = paint(layers, height, width, rule, rasterizer, values).ravel()[spots]
    hidden: dict[str, dict[int, int]] = {rule: {} for rule in OVERLAPS}
    for index, layer in layer_of.items():
        claims = int(np.count_nonzero(layer.ravel()[spots]))
        for rule in OVERLAPS:
            if lost := claims - _count(drawn[rule], values[index]):
                hidden[rule][index] = lost
    return hidden


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
