"""The survey of overlaps: the pixels of each class that each overlap rule hides, in a sample of the images.

It is a sample because an image is drawn by all three rules, which takes longer than drawing its mask.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from heapq import nsmallest
from typing import Literal

import numpy as np

from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.labels import IGNORE_INDEX
from cocoseg.preparation.coco_file import Image
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Layers
from cocoseg.preparation.subset import rank

SAMPLE = 256  # images at most
COVERED = "covered"


def sample(images: Iterable[Image], seed: int) -> set[int]:
    """Choose the images to survey, by id; data sets that share images survey some of the same."""
    return {image.id for image in nsmallest(SAMPLE, images, key=lambda image: rank(seed, image.id))}


def survey(layers: Layers, rasterizer: Literal["pillow", "coco"]) -> dict[str, Counter[int]]:
    """Survey one image.

    Returns:
        pixels by class index: under COVERED those inside the objects of a class, whichever class is on top;
        under the name of each overlap rule those of them that the rule gives to another class or ignores.
    """
    found: dict[str, Counter[int]] = {name: Counter() for name in (COVERED, *OVERLAPS)}
    masks = {rule: paint(layers, MasksConfig(overlap=rule, rasterizer=rasterizer)) for rule in OVERLAPS}
    for index in {shape.class_index for shape in layers.shapes} - {IGNORE_INDEX}:
        alone = replace(layers, shapes=[shape for shape in layers.shapes if shape.class_index == index])
        covered = paint(alone, MasksConfig(rasterizer=rasterizer)) > 0
        found[COVERED][index] = int(np.count_nonzero(covered))
        for rule, mask in masks.items():
            found[rule][index] = int(np.count_nonzero(covered & (mask != index)))
    return found
