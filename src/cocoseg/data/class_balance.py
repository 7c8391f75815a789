"""Class balance: weights for the loss, and warnings about classes that can't be learned or scored."""

import math
from collections.abc import Sequence

import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap

MAX_NAMES = 5  # names of classes in a warning


def class_weights(counts: np.ndarray) -> list[float]:
    """Compute weights of classes for the loss: 1 / ln(1.02 + p) for a class with share p of all pixels.

    They are those of ENet (Paszke et al. 2016, arXiv 1606.02147), between 1.4 and 50. A class that does not
    occur has weight 1.

    Args:
        counts: pixels per image and class, (N, C); of images with a weight, multiplied by it.
    """
    pixels = counts.sum(0, dtype=np.float64)
    shares = pixels / max(1, pixels.sum())
    return [1 / math.log(1.02 + share) if share else 1.0 for share in shares.tolist()]


def require_classes(train_counts: np.ndarray, image_size: Sequence[int]) -> None:
    """Raise CocosegError where no training image has a pixel of any class at the network's size.

    Args:
        train_counts: pixels per image and class, (N, C).
        image_size: (height, width) in pixels.
    """
    if not train_counts[:, 1:].any():
        height, width = image_size
        raise CocosegError(
            f"nothing to learn: none of the {len(train_counts)} training images has a pixel of any class at "
            f"{width}x{height} pixels; raise data.image_size, or give more images"
        )


def classes_lost_by_resizing(own_pixels: Sequence[int], *counts: np.ndarray, labels: LabelMap) -> list[str]:
    """Warn of classes that are in the masks at the images' own size, but not at the network's size.

    Args:
        own_pixels: pixels per class at the images' own size, (C,).
        counts: pixels per image and class at the network's size, (N, C) each.
    """
    gone = (np.asarray(own_pixels) > 0) & ~np.any([part.any(0) for part in counts], axis=0)
    if names := _names(gone, labels):
        return [f"classes too small to be seen at the network's size: {names}; raise data.image_size"]
    return []


def classes_in_one_set(train_counts: np.ndarray, val_counts: np.ndarray, labels: LabelMap) -> list[str]:
    """Warn of classes that are in one of the two sets only; background is left out.

    The report of the preparation names the classes that are in none.

    Args:
        train_counts, val_counts: pixels per image and class, (N, C).
    """
    trained, scored = (np.count_nonzero(counts, axis=0) > 0 for counts in (train_counts, val_counts))
    warnings = []
    if names := _names(scored & ~trained, labels):
        warnings.append(
            f"classes in validation, but on no training image: {names}; their IoU is 0, which lowers "
            "the mean; try a larger data.subset.size, or another seed"
        )
    if names := _names(trained & ~scored, labels):
        warnings.append(
            f"classes on training images, but not in validation: {names}; no score shows how well they are "
            "learned; try more validation images (data.val_fraction, data.val_annotations)"
        )
    return warnings


def _names(chosen: np.ndarray, labels: LabelMap) -> str:
    """Names of the chosen classes, (C,) bool, without background."""
    names = [labels.names[index] for index in np.flatnonzero(chosen) if index]
    more = [f"{len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join(names[:MAX_NAMES] + more)
