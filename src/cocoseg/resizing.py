"""Resizing of label masks: each new pixel takes the nearest old one, as seen from its center. No torch."""

from functools import lru_cache

import numpy as np
import PIL.Image

NEAREST = PIL.Image.Resampling.NEAREST


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask (h, w) uint8 to (height, width). `pixels.resize_masks` does the same for tensors."""
    return np.asarray(PIL.Image.fromarray(mask).resize(size[::-1], NEAREST))


@lru_cache(maxsize=64)
def nearest_indices(old: int, new: int) -> np.ndarray:
    """Index of the old pixel that each new pixel of a row or column takes: (new,) int64.

    These are Pillow's choices, also where a center falls between two pixels and both are as near.
    """
    row = PIL.Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(row.resize((new, 1), NEAREST))[0].astype(np.int64)
