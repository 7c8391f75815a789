"""The terminal: progress of a run, and the table of scores at its end."""

import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from cocoseg.budget.budget import Budget
from cocoseg.budget.lightning_internals import batches_of_epoch
from cocoseg.durations import clock, now
from cocoseg.labels import LabelMap
from cocoseg.progress import LINE_EVERY
from cocoseg.scores import Scores

log = logging.getLogger(__name__)

REFRESH = 5  # steps between two updates of the bar: showing a loss waits for the GPU
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
        "Be aware that when using `ckpt_path`, callbacks used to create",  # one of an earlier version
        "You're resuming from a checkpoint that ended before the epoch ended",
        "`ModelCheckpoint.*could not find the monitored key",  # the run ended before the first validation
    ):
        warnings.filterwarnings("ignore", message=message)


def position(trainer: L.Trainer, budget: Budget) -> str:
    """Describe how far a run is: time used, limit, epoch, and the expected number of epochs."""
    limit = "" if budget.limit is None else f" of {clock(budget.limit)}"
    epochs = "?"
    if budget.progress and trainer.num_training_batches:
        done = trainer.current_epoch + (batches_of_epoch(trainer) + 1) / trainer.num_training_batches
        epochs = f"{done / budget.progress:.0f}"
    return f"{clock(budget.used())}{limit}  epoch {trainer.current_epoch} of ~{epochs}"


class BarProgress(TQDMProgressBar):
    """Lightning's bar, with the position in the run."""

    def __init__(self, budget: Budget):
        super().__init__(refresh_rate=REFRESH, leave=False)
        self.budget = budget

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {**metrics, "run": position(trainer, self.budget)}


class LineProgress(ProgressBar):
    """Logs a line of plain text at most every LINE_EVERY seconds, and after the last validation."""

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = budget
        self.shown = now()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if now() - self.shown >= LINE_EVERY:
            self.on_train_end(trainer)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.shown = now()
        metrics = trainer.callback_metrics
        values = [f"{name} {float(metrics[key]):.3f}" for key, name in SHOWN.items() if key in metrics]
        log.info("%s  step %d  %s", position(trainer, self.budget), trainer.global_step, "  ".join(values))


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
