"""The terminal: progress of a run, and the table of scores at its end."""

import logging
import sys
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from cocoseg.budget.budget import Budget
from cocoseg.budget.lightning_internals import batches_of_epoch
from cocoseg.durations import clock
from cocoseg.labels import LabelMap
from cocoseg.progress import LINE_EVERY
from cocoseg.scores import Scores

log = logging.getLogger(__name__)

BAR_EVERY = 0.5  # seconds between two updates of the bar
SHOWN = {"train/loss_step": "loss", "val/loss": "val loss", "val/miou": "val mIoU"}


def quiet_lightning() -> None:
    """Silence Lightning's tips and device lists, and warnings that do not concern the user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*treespec, LeafSpec.* is deprecated",
        "The number of training batches .* is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        "The dirpath has changed from",  # a resumed run has a folder of its own
        "It is recommended to use `self.log.*sync_dist=True",  # ours are reduced already
        "You're resuming from a checkpoint that ended before the epoch ended",
        "`ModelCheckpoint.*could not find the monitored key",  # the run ended before the first validation
    ):
        warnings.filterwarnings("ignore", message=message)


def progress_callback(budget: Budget) -> ProgressBar:
    """Make a progress bar for a terminal, plain lines elsewhere."""
    return BarProgress(budget) if sys.stderr.isatty() else LineProgress(budget)


def estimate_epochs(trainer: L.Trainer, budget: Budget) -> str:
    """Estimate the number of epochs of the whole run; `?` before the first step."""
    if not budget.progress or not trainer.num_training_batches:
        return "?"
    done = trainer.current_epoch + (batches_of_epoch(trainer) + 1) / trainer.num_training_batches
    return f"{done / budget.progress:.0f}"


class BarProgress(TQDMProgressBar):
    """Lightning's bar, with the time used, the limit and the expected number of epochs."""

    def __init__(self, budget: Budget):
        super().__init__(leave=False)
        self.budget = budget
        self._shown = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after every step: showing a loss waits for the GPU.
        if time.monotonic() - self._shown >= BAR_EVERY or batch_idx + 1 == self.total_train_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._shown = time.monotonic()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics["epochs"] = f"~{estimate_epochs(trainer, self.budget)}"
        metrics["time"] = clock(self.budget.used())
        if self.budget.limit is not None:
            metrics["time"] += f"/{clock(self.budget.limit)}"
        return metrics


class LineProgress(ProgressBar):
    """Logs a line of plain text at most every LINE_EVERY seconds, and after the last validation."""

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = budget

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.shown = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if time.monotonic() - self.shown >= LINE_EVERY:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer)

    def _show(self, trainer: L.Trainer) -> None:
        self.shown = time.monotonic()
        limit = "" if self.budget.limit is None else f" of {clock(self.budget.limit)}"
        values = (
            f"{name} {float(trainer.callback_metrics[key]):.3f}"
            for key, name in SHOWN.items()
            if key in trainer.callback_metrics
        )
        log.info(
            "%s%s  epoch %d of ~%s  step %d  %s",
            clock(self.budget.used()),
            limit,
            trainer.current_epoch,
            estimate_epochs(trainer, self.budget),
            trainer.global_step,
            "  ".join(values),
        )


def score_table(scores: Scores, labels: LabelMap) -> str:
    """Make a table of the IoU of each class and the means. Classes that validation lacks are only counted."""
    means = {
        "mIoU (without background)": scores.miou,
        "mIoU (with background)": scores.miou_with_background,
        "pixel accuracy": scores.pixel_accuracy,
    }
    width = max(map(len, [*labels.names, *means]))
    rows = [f"{'class':{width}}     IoU"]
    for name, iou in zip(labels.names, scores.iou, strict=True):
        if iou is not None:
            rows.append(f"{name:{width}}  {iou:6.3f}")
    if absent := scores.iou.count(None):
        rows.append(f"{'classes not in validation':{width}}  {absent:6d}")
    rows.append("-" * (width + 8))
    rows += [f"{name:{width}}  {value:6.3f}" for name, value in means.items()]
    return "\n".join(rows)
