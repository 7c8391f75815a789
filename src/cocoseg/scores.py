"""Scores of a data set: IoU and all others, from counts of pixels per class. No torch.

IoU of a class = intersection / union over all pixels of the set (Everingham et al. 2010, PASCAL VOC), never
an average over images. Only classes that occur in the targets are scored; means such as mIoU are taken over
these. Frequency-weighted IoU weighs the IoU of each class by its share of the target pixels (Long
et al. 2015, arXiv 1411.4038). Dice of a class is 2 |correct| / (|target| + |predicted|), the F1 score of its
pixels.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

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


class Counts(NamedTuple):
    """Pixels per class, without the ignored ones: (…, C), integers or floats that hold integers.

    Leading dimensions are sets that are scored one by one, such as images or resampled sets.

    Attributes:
        correct: pixels of the class that are predicted as it.
        target: pixels of the class.
        predicted: pixels that are predicted as the class.
    """

    correct: np.ndarray
    target: np.ndarray
    predicted: np.ndarray

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Self:
        """Counts from confusion matrices (…, C, C), rows the targets."""
        correct = matrix.diagonal(axis1=-2, axis2=-1).copy()  # else it would keep the whole matrix
        return cls(correct, matrix.sum(-1), matrix.sum(-2))

    def iou(self) -> np.ndarray:
        """(…, C) float64; NaN for classes that don't occur in the targets."""
        return self._where_target(self.correct, self.target + self.predicted - self.correct)

    def dice(self) -> np.ndarray:
        """(…, C) float64; NaN for classes that don't occur in the targets."""
        return self._where_target(2 * self.correct, self.target + self.predicted)

    def recall(self) -> np.ndarray:
        """Correct pixels as a share of the class's: (…, C) float64; NaN for classes that don't occur."""
        return self._where_target(self.correct, self.target)

    def precision(self) -> np.ndarray:
        """Correct pixels as a share of the predicted ones: (…, C) float64; NaN for classes without any."""
        return _divide(self.correct, self.predicted, self.predicted > 0)

    def share(self) -> np.ndarray:
        """Target pixels of each class as a share of all: (…, C) float64."""
        return self.target / np.maximum(1, self.target.sum(-1, keepdims=True))

    def summary(self) -> dict[str, np.ndarray]:
        """The scores of SUMMARY: (…) float64 each; NaN where there is nothing to average."""
        iou, dice, share = self.iou(), self.dice(), self.share()
        total = self.target.sum(-1)
        return {
            "miou": _mean(iou[..., 1:]),
            "miou_with_background": _mean(iou),
            "pixel_accuracy": _divide(self.correct.sum(-1), total, total > 0),
            "frequency_weighted_iou": np.where(total > 0, np.nansum(iou * share, -1), np.nan),
            "dice": _mean(dice[..., 1:]),
            "dice_with_background": _mean(dice),
        }

    def _where_target(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return _divide(part, whole, self.target > 0)


@dataclass(frozen=True)
class Scores:
    """The scores of a validation, which metrics.json, checkpoints and model files hold.

    Attributes:
        iou: per class index; None for a class that does not occur in the targets.
        miou: mean over the classes that occur, without background; NaN where there is none.
        miou_with_background: the same with background.
        pixel_accuracy: share of the correct pixels.
    """

    iou: list[float | None]
    miou: float
    miou_with_background: float
    pixel_accuracy: float

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Self:
        """Scores from a (C, C) confusion matrix, rows the targets."""
        counts = Counts.from_matrix(matrix)
        summary = counts.summary()
        return cls(
            iou=[None if np.isnan(iou) else iou for iou in counts.iou().tolist()],
            miou=float(summary["miou"]),
            miou_with_background=float(summary["miou_with_background"]),
            pixel_accuracy=float(summary["pixel_accuracy"]),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def confusion(target: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count the pairs of target and predicted class over the pixels that are not ignored: (C, C) int64.

    Args:
        target, predicted: (H, W) uint8 class indices.
        classes: C, at most 255.
    """
    pair = target.astype(np.int32) * classes + predicted
    counts = np.bincount(pair.ravel(), minlength=(IGNORE_INDEX + 1) * classes)
    return counts[: classes * classes].reshape(classes, classes)


def image_iou(target: np.ndarray, predicted: np.ndarray) -> float:
    """Mean IoU over the classes in one image's own target, with background; 0 where all pixels are ignored.

    It sorts images; no score of a set is made from it.

    Args:
        target, predicted: (H, W) uint8 class indices.
    """
    counts = Counts.from_matrix(confusion(target, predicted, IGNORE_INDEX))
    return float(np.nan_to_num(counts.summary()["miou_with_background"]))


def _divide(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    """part / whole where `where` holds, else NaN."""
    result = np.full(np.shape(part), np.nan)
    return np.divide(part, whole, out=result, where=where)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing else is there."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(-1), np.nan)
