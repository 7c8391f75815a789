"""Calibration: 80 % of the pixels of which a model is 80 % sure should be right. No torch.

The expected calibration error (Guo et al. 2017, arXiv 1706.04599) sorts the pixels into bins by confidence,
the probability of the predicted class. It is the mean of |accuracy - mean confidence| of the bins, weighted
by their pixels.
"""

import numpy as np

from cocoseg.labels import IGNORE_INDEX

BINS = 15  # bins of equal width, each with its upper end: the first holds confidences from 0 to 1/15


class Calibration:
    """Confidence and accuracy over the pixels of a set that are not ignored.

    Attributes:
        pixels, correct: number of pixels, and of correctly predicted ones, in each bin: (15,) int64.
        confidence: sum of the confidences in each bin, (15,) float64.
    """

    def __init__(self) -> None:
        self.pixels, self.correct = np.zeros((2, BINS), np.int64)
        self.confidence = np.zeros(BINS)

    def add(self, target: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, weight: int = 1) -> None:
        """Count one more image, or some rows of it.

        Args:
            target, predicted: (H, W) uint8 class indices.
            confidence: (H, W) float32, probability of the predicted class.
            weight: number of rows that each row stands for.
        """
        counted = target != IGNORE_INDEX
        confidence = confidence[counted]
        bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.pixels += weight * np.bincount(bins, minlength=BINS)
        self.correct += weight * np.bincount(bins[(target == predicted)[counted]], minlength=BINS)
        self.confidence += weight * np.bincount(bins, confidence, BINS)

    def error(self) -> float:
        """Expected calibration error, from 0 to 1; NaN where no pixel was counted."""
        total = self.pixels.sum()
        return float(np.abs(self.correct - self.confidence).sum() / total) if total else np.nan
