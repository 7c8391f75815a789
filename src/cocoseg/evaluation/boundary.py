"""Boundary IoU: how well the contours of classes are met (Cheng et al. 2021, arXiv 2103.16562). No torch.

The boundary region of a class is its pixels within a distance d of its contour, d being 2 % of the image's
diagonal. The distance is the larger of rows and columns: that is d erosions by 3x3 pixels, as in the authors'
code. The image's edge is a contour, too. Boundary IoU is the IoU of the regions of target and prediction.

A pixel that the target ignores is unknown, so it belongs to no region and makes no contour: an object that
ends there is taken to go on. Target and prediction are treated alike, so what is predicted there has no
effect.
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

    Another class is within the distance where the lowest and the highest class index there differ.

    Args:
        mask: (H, W) uint8 class indices; ignored pixels are 255.
        distance: in pixels, d above.
    """
    ignored = mask == IGNORE_INDEX  # never the lowest; as zeros never above the pixel's own class
    lowest = _within(distance, np.minimum, mask)
    found = lowest != _within(distance, np.maximum, np.where(ignored, 0, mask))
    for ends in (found, found.T):
        ends[:distance] = ends[-distance:] = True
    return found & ~ignored


def _within(distance: int, extreme: Callable[..., np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Lowest or highest value up to `distance` rows and columns from each pixel: (H, W), as the mask.

    The extreme of 2 n values is that of two windows of n, so a few passes are enough for any distance.
    """
    size = 2 * distance + 1
    for _ in ("rows", "columns"):
        # Beyond the edge its values repeat; they are in the window anyway.
        mask, done = np.pad(mask, ((distance, distance), (0, 0)), mode="edge"), 1
        while done < size:
            step = min(done, size - done)
            mask, done = extreme(mask[:-step], mask[step:]), done + step
        mask = mask.T
    return mask
