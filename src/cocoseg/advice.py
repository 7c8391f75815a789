"""Words of warning: classes that can't be learned or scored, training that diverges, predictions that
collapse, images that are learned by heart."""

import logging
import math
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from cocoseg.budget import Budget
from cocoseg.failures import LOOK_EVERY
from cocoseg.labels import LabelMap
from cocoseg.module import SegmentationModule

log = logging.getLogger(__name__)

NAMES = 5  # of classes, that a warning lists
LOOK_FROM = 0.2  # progress: before, almost every network says the same of every pixel
LATE = 0.5  # progress: from here on the rarest classes, too, should be found by somebody
COLLAPSED = 0.99  # share of the pixels that one class is predicted for …
SURPLUS = 0.05  # … where its share of the truth is smaller by this
TRACE = 0.001  # the same from LATE on, where none of the other classes' pixels is right
WORSE = 1.1  # times the lowest validation loss …
TIMES = 3  # … in so many validations in a row
LOST = 0.5  # share of what the training loss had fallen by, that is lost again
DOUBLED = 2.0  # times the lowest training loss, which small losses must reach beside
WORSE_THAN_CHANCE = 1.1  # times the loss of the untrained network
HIGH_FOR = 5  # means over LOOK_EVERY steps in a row


class Advice(L.Callback):
    """Says once each what goes wrong and what to try."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.course = LossCourse()
        self._losses: list[Tensor] = []  # of the steps since the last look
        self._collapse_said = self._overfitting_said = self._divergence_said = False
        self._lowest = float("inf")  # validation loss …
        self._train_then = float("inf")  # … and the training loss at that time
        self._worse = 0

    # --- steps

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: SegmentationModule,
        outputs: dict[str, Tensor],
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self._divergence_said:
            self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)

    def on_before_backward(self, trainer: L.Trainer, pl_module: SegmentationModule, loss: Tensor) -> None:
        # Here, where `StopAtNoNumber` has just waited for the GPU, so that nothing is waited for again.
        if trainer.global_step % LOOK_EVERY or len(self._losses) < LOOK_EVERY:
            return
        values = torch.stack(self._losses).tolist()
        self._losses = []
        if self.course.rises(values, math.log(len(pl_module.spec.labels))):
            self._divergence_said = True
            clip = "" if trainer.gradient_clip_val else ", or set trainer.gradient_clip_val=1"
            low = min(self.course.began, self.course.lowest)
            log.warning(
                "training diverges: the loss rose from %.3f to %.3f; lower optimizer.lr (now %g), e.g. to a "
                "third%s",
                *(low, self.course.last, pl_module.base_rates[0][0], clip),
            )

    def state_dict(self) -> dict[str, float | None]:
        return {"began": self.course.began, "lowest": self.course.lowest}

    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        """A run that goes on: where it began is known."""
        self.course = LossCourse(**state_dict)
        self._losses = []

    # --- validations

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if trainer.sanity_checking or pl_module.matrix is None:
            return
        if not self._collapse_said and self.budget.progress >= LOOK_FROM:
            said = collapse(pl_module.matrix, pl_module.spec.labels, late=self.budget.progress >= LATE)
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
        # Known images are told better than others, and better than before.
        by_heart = train_loss < min(val_loss, self._train_then)
        self._worse = self._worse + 1 if by_heart and val_loss > WORSE * self._lowest else 0
        if self._worse == TIMES and not self._overfitting_said:
            self._overfitting_said = True
            log.warning(
                "the network learns its images by heart: the validation loss rose from %.3f to %.3f while "
                "the training loss fell from %.3f to %.3f; try augment=default (or strong), more images, or "
                "a smaller model.base_channels; the best model so far is kept",
                *(self._lowest, val_loss, self._train_then, train_loss),
            )


class LossCourse:
    """Tells a training loss that rises for good from one that is only noisy.

    It is high where half of all that it had fallen by is lost again and it has doubled, or where it is worse
    than that of the untrained network; and rises where it is high in several means over some steps in a row.

    Attributes:
        began: the loss of the first step; None before.
        lowest, last: of the means.
    """

    def __init__(self, began: float | None = None, lowest: float = math.inf):
        self.began = began
        self.lowest = lowest
        self.last = math.nan
        self._high = 0

    def rises(self, losses: list[float], chance: float) -> bool:
        """Add the losses of some steps.

        Args:
            losses: one per step.
            chance: the cross entropy of a network that knows nothing. A run may begin with a network that
                knows something, and a first step better than that.
        """
        if self.began is None:
            self.began = losses[0]
        self.last = sum(losses) / len(losses)
        self.lowest = min(self.lowest, self.last)
        fallen_back = max(DOUBLED * self.lowest, self.lowest + LOST * (self.began - self.lowest))
        level = min(fallen_back, WORSE_THAN_CHANCE * max(self.began, chance))
        self._high = self._high + 1 if self.last > level else 0
        return self._high >= HIGH_FOR


def collapse(matrix: Tensor, labels: LabelMap, *, late: bool = False) -> str | None:
    """What to say where nearly all pixels are predicted to be of one class that has fewer, else None.

    Args:
        matrix: (C, C) pixels, rows the truth.
        late: much was trained already: classes of few pixels count, too, where no pixel of any is right.
    """
    total = matrix.sum().item()
    predicted, true = matrix.sum(0), matrix.sum(1)
    most = int(predicted.argmax())
    nothing_else = bool(matrix.diag().sum() == matrix[most, most])
    surplus = TRACE if late and nothing_else else SURPLUS
    if not total or predicted[most] < COLLAPSED * total or true[most] > predicted[most] - surplus * total:
        return None
    return (
        f"predictions collapse: {predicted[most].item() / total:.1%} of the validation pixels are taken for "
        f"{labels.names[most]!r}, which {true[most].item() / total:.1%} are; try loss.class_weights=enet, "
        "a lower optimizer.lr, or more time"
    )


def one_sided(train_counts: np.ndarray, val_counts: np.ndarray, labels: LabelMap) -> list[str]:
    """What to say of classes that only one of the two sets shows; what both lack is in the report of the
    preparation. Background takes no part.

    Args:
        train_counts, val_counts: pixels per image and class, (N, C).
    """
    trained, scored = (counts.any(0) for counts in (train_counts, val_counts))
    said = []
    for names, words in (
        (
            [labels.names[i] for i in np.flatnonzero(scored & ~trained) if i],
            "in validation, but on no training image: an IoU of 0 is all there can be, and lowers the mean; "
            "try more images, data.subset.stratify=true, or another seed",
        ),
        (
            [labels.names[i] for i in np.flatnonzero(trained & ~scored) if i],
            "on training images, but not in validation: no score tells what is learned of them; try more "
            "validation images (data.val_fraction, data.val_annotations)",
        ),
    ):
        if names:
            more = f", and {len(names) - NAMES} more" * (len(names) > NAMES)
            count = "1 class is" if len(names) == 1 else f"{len(names)} classes are"
            said.append(f"{count} ({', '.join(names[:NAMES])}{more}) {words}")
    return said
