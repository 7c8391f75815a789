"""The annotations of one image -> its label mask.

A painter's algorithm on one canvas: annotations are drawn one over the other, and their order is the overlap
rule. In ascending order of class indices the mask is pixel for pixel that of `np.maximum` over one canvas per
annotation, because the last one drawn has the highest index.

A label mask in memory holds class indices, (H, W) uint8: 0 background, 255 ignored. Files hold category ids,
see mask_files.py.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as coco_mask

from cocoseg.config import MasksConfig
from cocoseg.images.mask_files import INDICES
from cocoseg.labels import IGNORE_INDEX
from cocoseg.preparation.segmentations import Layers, Runs, SegmentationError, Shape, rle_runs

LONGEST = 2_000_000  # length of an outline, in pixels, that pycocotools may draw; it takes 80 bytes for each


def paint(layers: Layers, rules: MasksConfig, values: Sequence[int] = INDICES) -> np.ndarray:
    """Draw the label mask of an image.

    Args:
        rules: `overlap` and `rasterizer` are used.
        values: the value to draw for each class index; that of 255 is 255.

    Returns:
        (H, W) uint8, in `values`.

    Raises:
        SegmentationError: the outline of a polygon is too long for pycocotools.
    """
    ignored = [shape for shape in layers.shapes if shape.class_index == IGNORE_INDEX]
    objects = [shape for shape in layers.shapes if shape.class_index != IGNORE_INDEX]
    objects.sort(key=lambda shape: shape.class_index)
    if rules.overlap == "smallest":  # the sort is stable: of equal areas the higher class is on top
        objects.sort(key=lambda shape: -shape.area)
    size = layers.height, layers.width
    mask = _draw(ignored + objects, *size, rules.rasterizer, values)
    if rules.overlap == "ignore":
        # Drawn in reverse order, the mask differs wherever several classes overlap.
        reverse = _draw(ignored + objects[::-1], *size, rules.rasterizer, values)
        mask[mask != reverse] = IGNORE_INDEX
    return mask


def _draw(
    shapes: Iterable[Shape], height: int, width: int, rasterizer: str, values: Sequence[int]
) -> np.ndarray:
    """Draw shapes in this order, the later over the earlier."""
    mask = np.zeros((height, width), dtype=np.uint8)
    # Pillow draws into the memory of the array, without a copy.
    image = PIL.Image.frombuffer("L", (width, height), mask, "raw", "L", 0, 1)
    image.readonly = 0
    canvas = PIL.ImageDraw.Draw(image)
    for shape in shapes:
        value = values[shape.class_index]
        if isinstance(shape.outline, np.ndarray):
            _fill_runs(mask, shape.outline, value)
            continue
        for polygon in shape.outline:
            if rasterizer == "pillow":
                canvas.polygon(polygon, fill=value)
            else:
                _fill_runs(mask, _runs_inside(shape, polygon, height, width), value)
    return mask


def _runs_inside(shape: Shape, polygon: list[float], height: int, width: int) -> Runs:
    """Find the pixels inside a polygon of a shape as COCO's evaluation does."""
    points = np.reshape(polygon, (-1, 2))
    if abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum() > LONGEST:
        raise SegmentationError(
            f"annotation {shape.annotation_id}: an outline of more than {LONGEST:,} pixels; "
            "masks.rasterizer=pillow draws it"
        )
    (rle,) = coco_mask.frPyObjects([polygon], height, width)
    return rle_runs(rle["counts"].decode())


def _fill_runs(mask: np.ndarray, runs: Runs, value: int) -> None:
    """Fill the pixels that runs cover, in a time that grows with their bounding box, not with the image.

    pycocotools would decode them to a canvas of the image's size, and read memory that it never wrote where
    the runs are damaged.
    """
    height = len(mask)
    ends = np.cumsum(runs)[1::2]
    begins, ends = (edges[runs[1::2] > 0] for edges in (ends - runs[1::2], ends))
    if not begins.size:
        return
    first, top = np.divmod(begins, height)
    last, bottom = np.divmod(ends - 1, height)
    rows = slice(0, height)
    if (first == last).all():  # else a run goes on at the top of the next column
        rows = slice(int(top.min()), int(bottom.max()) + 1)
    columns = slice(int(first[0]), int(last[-1]) + 1)
    box = mask[rows, columns]
    # Where runs begin and end in the box, column by column.
    edges = np.column_stack((first, top, last, bottom + 1)).reshape(-1, 2) - (columns.start, rows.start)
    edges = edges @ (len(box), 1)
    lengths: np.ndarray = np.diff(edges, prepend=0, append=box.size)
    inside = np.arange(lengths.size) % 2 == 1
    np.copyto(box, value, where=np.repeat(inside, lengths).reshape(box.shape[::-1]).T)
