"""Sums over the batches of an epoch: the confusion matrix, which scores.py reads, and the mean loss."""

import torch
from torch import Tensor
from torchmetrics import Metric

from cocoseg.labels import IGNORE_INDEX


class ConfusionMatrix(Metric):
    """Counts of (target, predicted) class over all pixels that are not ignored: (C, C) int64."""

    full_state_update = False
    matrix: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrix", zeros, dist_reduce_fx="sum")

    def update(self, predicted: Tensor, mask: Tensor) -> None:
        """Add a batch: predicted and mask (B, H, W) int64."""
        cells = self.num_classes**2
        # Ignored pixels go to an extra bin, which is several times faster than selecting the others.
        pair = torch.where(mask == IGNORE_INDEX, cells, mask * self.num_classes + predicted)
        counts = torch.bincount(pair.flatten(), minlength=cells + 1)[:cells]
        self.matrix += counts.view_as(self.matrix)

    def compute(self) -> Tensor:
        return self.matrix


class MeanLoss(Metric):
    """Mean of the batches' losses, weighted by their pixels that are not ignored.

    torchmetrics' MeanMetric checks every batch for NaN, which waits for a GPU. Under
    `nan_strategy="disable"` it does not, but ignores the weights as well (1.9).
    """

    full_state_update = False
    total: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, mask: Tensor) -> None:
        """Add the mean loss of a batch, and its mask (B, H, W) int64."""
        pixels = (mask != IGNORE_INDEX).sum()
        self.total += loss * pixels
        self.pixels += pixels

    def compute(self) -> Tensor:
        """The mean loss per pixel; 0 if there was no pixel."""
        return self.total / self.pixels.clamp(min=1)
