"""Warning about a training whose predictions collapse to one class."""

import logging

import lightning as L
from torch import Tensor

from cocoseg.budget.budget import Budget
from cocoseg.labels import LabelMap
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

EARLY = 0.3  # progress before which almost every network predicts one class for every pixel
COLLAPSED = 0.99  # share of the pixels that one class is predicted for
FOUND = 0.05  # share of the other classes' pixels; if so many are predicted correctly, nothing has collapsed


class WarnOfCollapse(L.Callback):
    """Warns once if the predictions of a validation collapse to one class, with what to try."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self._warned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if self._warned or trainer.sanity_checking or self.budget.progress < EARLY:
            return
        matrix = pl_module.matrix
        if matrix is not None and (warning := collapse(matrix, pl_module.spec.labels)):
            log.warning(warning)
            self._warned = True


def collapse(matrix: Tensor, labels: LabelMap) -> str | None:
    """Return a warning if the matrix (C, C), rows the target, has nearly all pixels in one column."""
    predicted, target = matrix.sum(0), matrix.sum(1)
    top = int(predicted.argmax())
    total, others = matrix.sum(), matrix.sum() - target[top]
    found = matrix.diag().sum() - matrix[top, top]
    if predicted[top] < COLLAPSED * total or found >= FOUND * others:
        return None
    return (
        f"predictions collapse: {(predicted[top] / total).item():.1%} of the validation pixels are predicted "
        f"as {labels.names[top]!r}, which only {(target[top] / total).item():.1%} are; try "
        "loss.class_weights=enet, a lower optimizer.lr, or more time"
    )
