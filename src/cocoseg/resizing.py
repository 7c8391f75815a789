"""Label masks: resizing, and the borders in them. No torch."""

from collections.abc import Sequence

import numpy as np
import PIL.Image

NEAREST = PIL.Image.Resampling.NEAREST


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a mask (h, w) uint8 to (height, width): each pixel takes the old one nearest to its center."""
    height, width = size
    return np.asarray(PIL.Image.fromarray(mask).resize((width, height), NEAREST))


def borders(mask: np.ndarray) -> np.ndarray:
    """Find the pixels of a mask (H, W) with another class beside, above or below them: (H, W) bool."""
    found = np.zeros(mask.shape, dtype=bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    found[:, 1:] |= across
    found[:, :-1] |= across
    found[1:] |= down
    found[:-1] |= down
    return found
