"""The annotations of one image -> its label mask.

A painter's algorithm on one canvas: annotations are drawn one over the other, and the order is the overlap
rule. In ascending class index the result is pixel for pixel that of `np.maximum` over one canvas per
annotation, because the last one drawn is the highest.

Inside the program a label mask holds class indices, (H, W) uint8: 0 background, 255 ignored. Files hold
category ids, see mask_files.py.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as coco_mask

from cocoseg.config import MasksConfig
from cocoseg.labels import IGNORE_INDEX
from cocoseg.preparation.segmentations import Layers, Polygons, Runs, Shape

INDICES = range(256)  # class indices as they are


def paint(layers: Layers, rules: MasksConfig, values: Sequence[int] = INDICES) -> np.ndarray:
    """Draw the label mask of an image.

    Args:
        layers: its annotations.
        rules: `overlap` and `rasterizer` count here.
        values: value to draw for each class index; 255 for 255.

    Returns:
        (H, W) uint8, in `values`.
    """
    objects = sorted(layers.objects, key=lambda shape: shape.class_index)
    if rules.overlap == "smallest":  # the sort is stable: of equal areas the higher class is on top
        objects.sort(key=lambda shape: -shape.area)
    mask = _draw(layers, objects, rules.rasterizer, values)
    if rules.overlap == "ignore":
        # With the lowest class on top the mask differs wherever several classes overlap.
        mask[mask != _draw(layers, objects[::-1], rules.rasterizer, values)] = IGNORE_INDEX
    return mask


def _draw(layers: Layers, objects: Iterable[Shape], rasterizer: str, values: Sequence[int]) -> np.ndarray:
    """Draw the ignored regions, then the objects in this order, the later over the earlier."""
    canvas = Canvas(layers.height, layers.width, rasterizer)
    for region in layers.regions:
        canvas.draw(region, IGNORE_INDEX)
    for shape in objects:
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


def _region(outline: Polygons | Runs, height: int, width: int) -> np.ndarray:
    """The pixels that an annotation covers, by COCO's own rule: (H, W) bool."""
    if isinstance(outline, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
        return coco_mask.decode(encoded).view(bool)
    # pycocotools would do, but it reads memory that it never wrote where runs are odd.
    values = np.zeros(outline.size, dtype=bool)
    values[1::2] = True
    return np.repeat(values, outline).reshape(width, height).T
