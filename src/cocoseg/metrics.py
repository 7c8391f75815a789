"""Scores of a data set from one confusion matrix over all its pixels.

IoU of a class = intersection / union over all pixels of the set (Everingham et al. 2010, PASCAL VOC), never
an average over images. mIoU = mean over the classes that occur in the ground truth.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics import Metric

from cocoseg.labels import IGNORE_INDEX


class ConfusionMatrix(Metric):
    """Counts of (true, predicted) class over all pixels that are not ignored: (C, C) int64."""

    full_state_update = False
    matrix: Tensor

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.add_state(
            "matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and mask (B, H, W) int64."""
        cells = self.num_classes**2
        # Ignored pixels go to an extra bin: several times faster than selecting the others.
        pair = torch.where(mask == IGNORE_INDEX, cells, mask * self.num_classes + prediction)
        counts = torch.bincount(pair.flatten(), minlength=cells + 1)[:cells]
        self.matrix += counts.view_as(self.matrix)

    def compute(self) -> Tensor:
        return self.matrix


class MeanLoss(Metric):
    """Mean of the losses of batches, each with the pixels that it is a mean over.

    torchmetrics' own looks for NaN in every batch, for which a GPU would be waited for.
    """

    full_state_update = False
    total: Tensor
    pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, pixels: Tensor) -> None:
        """Add a batch: its mean loss, and over how many pixels."""
        self.total += loss * pixels
        self.pixels += pixels

    def compute(self) -> Tensor:
        """0 where there was no pixel."""
        return self.total / self.pixels.clamp(min=1)


@dataclass(frozen=True)
class Scores:
    """Scores of a data set.

    Attributes:
        iou: per class index; None for a class that does not occur in the ground truth.
        miou: mean over the classes that occur, without background.
        miou_with_background: the same with background.
        pixel_accuracy: share of the pixels that are right.
    """

    iou: list[float | None]
    miou: float
    miou_with_background: float
    pixel_accuracy: float

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Self:
        """From a (C, C) confusion matrix, rows the truth; NaN where nothing is to be averaged."""
        matrix = matrix.double().cpu()
        right, true, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
        iou = right / (true + predicted - right)
        occurs = true > 0
        foreground = occurs.clone()
        foreground[0] = False
        return cls(
            iou=[
                value if present else None
                for value, present in zip(iou.tolist(), occurs.tolist(), strict=True)
            ],
            miou=iou[foreground].mean().item(),
            miou_with_background=iou[occurs].mean().item(),
            pixel_accuracy=(right.sum() / matrix.sum()).item(),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
