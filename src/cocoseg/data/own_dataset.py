"""A data set that the user has written, instead of a prepared folder."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cocoseg.cli import build
from cocoseg.config import as_pair
from cocoseg.data.dataset import SegmentationDataset, Split
from cocoseg.errors import CocosegError, reason_of
from cocoseg.labels import IGNORE_INDEX, Category, LabelMap


class OwnDataset(SegmentationDataset):
    """Items of a data set that the user has written, resized like those of prepared folders.

    Args:
        node: `_target_` and arguments; called with `split` too. Its items are image (3, H, W) uint8 RGB and
            mask (H, W) int64 of class indices, 255 where ignored; `classes` are the names, background first.
        split: train or val.
        image_size: (height, width) in pixels.

    Raises:
        CocosegError: it can't be built, is empty or has no classes. On access: an item does not fit.
    """

    exif = bits = _arrays = None

    def __init__(self, node: dict[str, Any], split: str, image_size: tuple[int, int]):
        self.name, self.image_size = f"data: {node['_target_']}(split={split!r})", image_size
        self.items = build(node, "data", split=split)
        try:
            count, given = len(self.items), getattr(self.items, "classes", None)
            classes = [] if given is None else list(map(str, given))
        except Exception as error:  # custom code may raise anything
            raise CocosegError(
                f"{self.name}: {reason_of(error)}; it must be a map-style data set, with `__len__` and "
                "`__getitem__`, and with a list as `classes`"
            ) from error
        if classes[:1] != ["background"] or count == 0:
            raise CocosegError(
                f"{self.name} has {count} items and the classes {classes[:3]}; it must have items, "
                "and as `classes` the names of all classes, background first"
            )
        categories = [Category(id=index, name=name) for index, name in enumerate(classes)]
        self.labels = LabelMap.from_categories(categories[1:])

    def __len__(self) -> int:
        return len(self.items)

    def original(self, index: int) -> tuple[Tensor, np.ndarray]:
        try:
            image, mask = self.items[index]
            found = [tuple(image.shape), image.dtype, tuple(mask.shape), mask.dtype, int(mask.max())]
            known = ((mask >= 0) & (mask < len(self.labels)) | (mask == IGNORE_INDEX)).all()
        except Exception as error:  # custom code may raise anything
            raise CocosegError(f"{self.name}: item {index} fails: {reason_of(error)}") from error
        size = tuple(mask.shape)
        if not known or found[:4] != [(3, *size), torch.uint8, size, torch.int64] or len(size) != 2:
            raise CocosegError(
                f"{self.name}: item {index} is image {found[0]} {found[1]}, mask {found[2]} {found[3]} up to "
                f"{found[4]}; it must be image (3, H, W) uint8 and mask (H, W) int64 of class indices below "
                f"{len(self.labels)} and {IGNORE_INDEX}"
            )
        return image, mask.byte().numpy()

    def _mask(self, index: int) -> np.ndarray:
        return self.original(index)[1]


def open_own_splits(node: dict[str, Any], train_size: list[int], val_size: list[int]) -> tuple[Split, Split]:
    """Open both splits of a user's data set. Raise CocosegError like `OwnDataset`, or if classes differ."""
    train, val = OwnDataset(node, "train", as_pair(train_size)), OwnDataset(node, "val", as_pair(val_size))
    if difference := train.labels.difference(val.labels):
        raise CocosegError(f"data: {node['_target_']}: the classes of train and val differ: {difference}")
    return Split(train), Split(val)
