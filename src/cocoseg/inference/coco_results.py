"""Predictions in COCO's results format, one run-length encoded mask per image and class.

https://cocodataset.org/#format-results (instance segmentation).
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as rle

from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import Image


def entries_of(mask: np.ndarray, image_id: int, file_name: str, labels: LabelMap) -> list[dict[str, Any]]:
    """Make an entry for each class but background in a mask, (H, W) uint8 class indices.

    `category_id` is the class index where a class stands for several categories. The score that the format
    asks for is 1. `file_name` is an addition that readers ignore.
    """
    ids = [label.category_id for label in labels.classes]
    if None in ids[1:]:
        ids = list(range(len(labels)))
    entries = []
    for index in np.flatnonzero(np.bincount(mask.ravel())).tolist():
        if index in (0, IGNORE_INDEX):
            continue
        encoded = rle.encode(np.asfortranarray(mask == index))
        entries.append(
            {
                "image_id": image_id,
                "category_id": ids[index],
                "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
                "score": 1.0,
                "file_name": file_name,
            }
        )
    return entries


def listed_images(names: Sequence[str], images: Sequence[Image]) -> dict[str, Image]:
    """The image of each name that an annotation file lists, found by path or else by file name."""
    by_path = {image.file_name: image for image in images}
    by_name: dict[str, Image | None] = {}  # None: several images have the name
    for image in images:
        name = PurePosixPath(image.file_name).name
        by_name[name] = None if name in by_name else image
    found = {name: by_path.get(name, by_name.get(PurePosixPath(name).name)) for name in names}
    return {name: image for name, image in found.items() if image is not None}
