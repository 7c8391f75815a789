"""Boundary IoU, a score of the contours of classes (Cheng et al. 2021, arXiv 2103.16562). No torch.

The boundary region of a class is the set of its pixels within a distance d of its contour, where d is 2 % of
the image's diagonal. The distance is the larger of that in rows and that in columns, which gives the region
that d erosions by 3x3 pixels remove, as in the authors' code. The image's edge is a contour, too. Boundary
IoU is the IoU of the regions of target and prediction.

A pixel that the target ignores is unknown. It belongs to no region and makes no contour, as if an object that
ends there went on. The same pixels are ignored in the prediction.
"""

import math
from collections.abc import Callable

import numpy as np

from cocoseg.labels import IGNORE_INDEX
from cocoseg.scores import Counts

SHARE = 0.02  # d as a share of the diagonal


def boundary_counts(target: np.ndarray, predicted: np.ndarray, classes: int) -> Counts:
    """Count the pixels of the boundary regions of an image, (C,) int64: their `Counts.iou` is Boundary IoU.

    Args:
        target, predicted: (H, W) uint8 class indices.
        classes: C, at most 255.
    """
    distance = max(1, round(SHARE * math.hypot(*target.shape)))
    predicted = np.where(target == IGNORE_INDEX, target, predicted)
    regions = [boundary(mask, distance) for mask in (target, predicted)]
    correct = regions[0] & regions[1] & (target == predicted)
    pixels = (predicted[correct], target[regions[0]], predicted[regions[1]])
    return Counts(*(np.bincount(classes_of, minlength=classes) for classes_of in pixels))


def boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Find the pixels in the boundary region of their class, for all classes at once: (H, W) bool.

    These are the pixels around which the lowest and the highest class index within the distance differ.

    Args:
        mask: (H, W) uint8 class indices; ignored pixels are 255.
        distance: in pixels, d above.
    """
    ignored = mask == IGNORE_INDEX  # 255 is never the lowest value; for the highest it is replaced by 0
    lowest = _within(distance, np.minimum, mask)
    found = lowest != _within(distance, np.maximum, np.where(ignored, 0, mask))
    for ends in (found, found.T):
        ends[:distance] = ends[-distance:] = True
    return found & ~ignored


def _within(distance: int, extreme: Callable[..., np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Lowest or highest value within `distance` rows and columns of each pixel: (H, W) uint8.

    The extreme of 2 n values follows from those of two windows of n, so few passes suffice.
    """
    size = 2 * distance + 1
    for _ in ("rows", "columns"):
        # Repeating the values at the edge changes no extreme: they are in the window anyway.
        mask, done = np.pad(mask, ((distance, distance), (0, 0)), mode="edge"), 1
        while done < size:
            step = min(done, size - done)
            mask, done = extreme(mask[:-step], mask[step:]), done + step
        mask = mask.T
    return mask
