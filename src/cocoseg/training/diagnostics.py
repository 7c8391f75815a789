"""Warning about a training whose predictions collapse to one class."""

import logging

import lightning as L
from torch import Tensor

from cocoseg.budget.budget import Budget
from cocoseg.labels import LabelMap
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

EARLY = 0.2  # progress: before, almost every network predicts one class for every pixel
LATE = 0.5  # progress: from here on even rare classes should be predicted
COLLAPSED = 0.99  # share of the pixels that one class is predicted for
SURPLUS = 0.05  # difference to the share of the target pixels that are of that class
LATE_SURPLUS = 0.001  # difference from LATE on, if no pixel of any other class is correct


class Diagnostics(L.Callback):
    """Warns once if the predictions of a validation collapse to one class, with what to try."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self._warned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        progress = self.budget.progress
        if self._warned or trainer.sanity_checking or pl_module.matrix is None or progress < EARLY:
            return
        warning = collapse(pl_module.matrix, pl_module.spec.labels, late=progress >= LATE)
        if warning is not None:
            log.warning(warning)
            self._warned = True


def collapse(matrix: Tensor, labels: LabelMap, *, late: bool = False) -> str | None:
    """Return a warning if nearly all pixels are predicted to be of one class that has fewer, else None.

    Args:
        matrix: (C, C) pixels, rows the target.
        late: at least half of the training is done: a smaller surplus is enough, if no pixel of any other
            class is correct.
    """
    total = matrix.sum().item()
    predicted, target = matrix.sum(0), matrix.sum(1)
    top = int(predicted.argmax())
    all_others_missed = bool(matrix.diag().sum() == matrix[top, top])
    surplus = LATE_SURPLUS if late and all_others_missed else SURPLUS
    if not total or predicted[top] < COLLAPSED * total or target[top] > predicted[top] - surplus * total:
        return None
    return (
        f"predictions collapse: {predicted[top].item() / total:.1%} of the validation pixels are predicted "
        f"as {labels.names[top]!r}, which only {target[top].item() / total:.1%} are; try "
        "loss.class_weights=enet, a lower optimizer.lr, or more time"
    )
