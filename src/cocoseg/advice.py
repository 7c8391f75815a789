"""Words of warning while a run goes on: predictions that collapse, and what is learned by heart."""

import logging

import lightning as L
from torch import Tensor

from cocoseg.budget import Budget
from cocoseg.labels import LabelMap
from cocoseg.module import SegmentationModule

log = logging.getLogger(__name__)

LOOK_FROM = 0.2  # progress: before, almost every network says the same of every pixel
COLLAPSED = 0.99  # share of the pixels that one class is predicted for …
SURPLUS = 0.05  # … where its share of the truth is smaller by this
WORSE = 1.1  # times the lowest validation loss …
TIMES = 3  # … in so many validations in a row


class Advice(L.Callback):
    """Says once each, after a validation, what goes wrong and what to try."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self._collapse_said = self._overfitting_said = False
        self._lowest = float("inf")  # validation loss …
        self._train_then = float("inf")  # … and the training loss at that time
        self._worse = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if trainer.sanity_checking or pl_module.matrix is None:
            return
        if not self._collapse_said and self.budget.progress >= LOOK_FROM:
            said = collapse(pl_module.matrix, pl_module.spec.labels)
            if said is not None:
                log.warning(said)
                self._collapse_said = True
        metrics = trainer.callback_metrics
        if "val/loss" in metrics and "train/loss" in metrics:
            self._watch(metrics["val/loss"].item(), metrics["train/loss"].item())

    def _watch(self, val_loss: float, train_loss: float) -> None:
        if val_loss < self._lowest:
            self._lowest, self._train_then, self._worse = val_loss, train_loss, 0
            return
        learns = train_loss < self._train_then
        self._worse = self._worse + 1 if learns and val_loss > WORSE * self._lowest else 0
        if self._worse == TIMES and not self._overfitting_said:
            self._overfitting_said = True
            log.warning(
                "the network learns its images by heart: the validation loss rose from %.3f to %.3f while "
                "the training loss fell from %.3f to %.3f; try augment=default (or strong), more images, or "
                "a smaller model.base_channels; the best model so far is kept",
                *(self._lowest, val_loss, self._train_then, train_loss),
            )


def collapse(matrix: Tensor, labels: LabelMap) -> str | None:
    """What to say where nearly all pixels are predicted to be of one class that has fewer, else None.

    Args:
        matrix: (C, C) pixels, rows the truth.
    """
    total = matrix.sum().item()
    predicted, true = matrix.sum(0), matrix.sum(1)
    most = int(predicted.argmax())
    if not total or predicted[most] < COLLAPSED * total or true[most] > predicted[most] - SURPLUS * total:
        return None
    return (
        f"predictions collapse: {predicted[most].item() / total:.1%} of the validation pixels are taken for "
        f"{labels.names[most]!r}, which {true[most].item() / total:.1%} are; try loss.class_weights=enet, "
        "a lower optimizer.lr, or more time"
    )
