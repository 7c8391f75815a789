"""The images to train on and those held out for validation."""

import torch
from torch.utils.data import Subset, random_split

from cocoseg.config import Config
from cocoseg.data.dataset import Pairs, SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepared_folder import PreparedSet, prepared_sets


def open_sets(config: Config, *, decode_once: bool) -> tuple[Pairs, Pairs]:
    """Open the prepared sets: the images to train on, and those to validate on.

    They are a seeded random split of one set, or two sets where `data.val_annotations` is given.

    Args:
        decode_once: read and write the decoded arrays of `SegmentationDataset.decode_once`.

    Raises:
        CocosegError: a set can't be read, or has too few images to be split.
    """

    def opened(prepared: PreparedSet, image_size: list[int]) -> SegmentationDataset:
        dataset = SegmentationDataset(prepared.subset_file, prepared.image_dir, tuple(image_size))
        if decode_once:
            dataset.decode_once(config.prepare.workers)
        return dataset

    data, (prepared, prepared_val) = config.data, prepared_sets(config)
    larger = data.cache_size or data.image_size  # training images may be larger, for crops to have room
    train = opened(prepared, larger)
    if prepared_val is not None:
        return train, opened(prepared_val, data.image_size)
    train_indices, val_indices = split(len(train), data.val_fraction, config.seed)
    val = train if larger == data.image_size else opened(prepared, data.image_size)
    return Subset(train, train_indices), Subset(val, val_indices)


def split(images: int, val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training images and of those held out; the same seed gives the same.

    Raises:
        CocosegError: there are too few images.
    """
    held_out = max(1, round(images * val_fraction))
    if held_out >= images:
        raise CocosegError(
            f"{images} images are too few to hold out {held_out} for validation: "
            "lower data.val_fraction, or give data.val_annotations"
        )
    generator = torch.Generator().manual_seed(seed)
    train, val = random_split(range(images), [images - held_out, held_out], generator)
    return list(train.indices), list(val.indices)
