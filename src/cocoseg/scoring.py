"""All scores of a data set, from counts of pixels per class: of one set, or of many resampled ones at once.

A class is scored where it occurs in the ground truth; means are over the classes that do. IoU and mIoU are
those of metrics.py. Frequency-weighted IoU weighs them by their share of the true pixels (Long et al. 2015,
arXiv 1411.4038); Dice of a class is 2 |correct| / (|true| + |predicted|), the F1 score of its pixels.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from cocoseg.labels import IGNORE_INDEX

SUMMARY = {
    "miou": "mIoU (without background)",
    "miou_with_background": "mIoU (with background)",
    "pixel_accuracy": "pixel accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "dice": "Dice (without background)",
    "dice_with_background": "Dice (with background)",
}


@dataclass(frozen=True)
class Counts:
    """Pixels per class, ignored ones left out: (…, C) integers, or floats that hold them.

    Attributes:
        correct: of the class and predicted as it.
        target: of the class.
        predicted: predicted as the class.
    """

    correct: np.ndarray
    target: np.ndarray
    predicted: np.ndarray

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Self:
        """From confusion matrices (…, C, C), rows the truth."""
        return cls(matrix.diagonal(axis1=-2, axis2=-1), matrix.sum(-1), matrix.sum(-2))

    def iou(self) -> np.ndarray:
        """(…, C) float64; NaN for classes that don't occur."""
        return self._where_true(self.correct, self.target + self.predicted - self.correct)

    def dice(self) -> np.ndarray:
        """(…, C) float64; NaN for classes that don't occur."""
        return self._where_true(2 * self.correct, self.target + self.predicted)

    def recall(self) -> np.ndarray:
        """Share of the class's pixels that are found: (…, C) float64; NaN for classes that don't occur."""
        return self._where_true(self.correct, self.target)

    def precision(self) -> np.ndarray:
        """Share of what is predicted as the class that is correct: (…, C) float64; NaN where it never is."""
        return _divided(self.correct, self.predicted, self.predicted > 0)

    def share(self) -> np.ndarray:
        """Share of the true pixels: (…, C) float64."""
        return self.target / np.maximum(1, self.target.sum(-1, keepdims=True))

    def summary(self) -> dict[str, np.ndarray]:
        """The scores of SUMMARY: (…) float64 each; NaN where there is nothing to average."""
        iou, dice, share = self.iou(), self.dice(), self.share()
        total = self.target.sum(-1)
        return {
            "miou": _mean(iou[..., 1:]),
            "miou_with_background": _mean(iou),
            "pixel_accuracy": _divided(self.correct.sum(-1), total, total > 0),
            "frequency_weighted_iou": np.where(total > 0, np.nansum(iou * share, -1), np.nan),
            "dice": _mean(dice[..., 1:]),
            "dice_with_background": _mean(dice),
        }

    def _where_true(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return _divided(part, whole, self.target > 0)


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts of (true, predicted) class over the pixels that are not ignored: (C, C) int64.

    Args:
        truth, prediction: (H, W) uint8 class indices.
        classes: C.
    """
    pair = truth.astype(np.int32) * classes + prediction
    counts = np.bincount(pair.ravel(), weights=None, minlength=(IGNORE_INDEX + 1) * classes)
    return counts[: classes * classes].reshape(classes, classes)


def _divided(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    """NaN elsewhere."""
    result = np.full(np.shape(part), np.nan)
    return np.divide(part, whole, out=result, where=where)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, NaN left out; NaN where nothing is left."""
    there = ~np.isnan(values)
    number = there.sum(-1)
    return _divided(np.where(there, values, 0).sum(-1), number, number > 0)
