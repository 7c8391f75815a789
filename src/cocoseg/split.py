"""Which images are held out for validation."""

import torch
from torch.utils.data import random_split

from cocoseg.errors import CocosegError


def split(images: int, val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the training images and of those held out; the same seed gives the same.

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
