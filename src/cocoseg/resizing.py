"""Resizing of label masks: each new pixel takes the nearest old one, as seen from its center. No torch."""

from collections.abc import Sequence

import numpy as np
import PIL.Image

NEAREST = PIL.Image.Resampling.NEAREST


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a mask (h, w) uint8 to (height, width)."""
    height, width = size
    return np.asarray(PIL.Image.fromarray(mask).resize((width, height), NEAREST))
