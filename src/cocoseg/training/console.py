"""The terminal: progress of a run, the profiler's report, and the table of scores at the end."""

import logging
import re
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import SimpleProfiler
from tqdm import tqdm

from cocoseg.budget.budget import Budget, elapsed
from cocoseg.budget.lightning_internals import batches_of_epoch
from cocoseg.durations import as_clock, now
from cocoseg.labels import LabelMap
from cocoseg.progress import LINE_EVERY
from cocoseg.scores import Scores

log = logging.getLogger(__name__)

REFRESH = 0.5  # seconds between two updates of the bar: showing a loss waits for the GPU
SHOWN = {"train/loss_step": "loss", "val/loss": "val loss", "val/miou": "val mIoU"}
ACTIONS, ACTION = 25, 52  # rows of the profiler's report, characters of a name in it


def quiet_lightning() -> None:
    """Silence Lightning's tips and device lists, and warnings that do not concern the user."""
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()  # ours, of the root logger, print its messages, too
        logger.propagate = True
    # These log what the user has asked for: the table of the layers, early stopping, profilers.
    for asked in ("callbacks", "profilers"):
        logging.getLogger(f"lightning.pytorch.{asked}").setLevel(logging.INFO)
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


def epoch(trainer: L.Trainer, budget: Budget) -> str:
    """Describe the number of the epoch, from 1, and the expected number of epochs."""
    number = trainer.current_epoch + 1
    if not budget.progress or not trainer.num_training_batches:
        return f"epoch {number}"
    done = trainer.current_epoch + (batches_of_epoch(trainer) + 1) / trainer.num_training_batches
    return f"epoch {number} of ~{max(number, round(done / budget.progress))}"


def values(trainer: L.Trainer, *names: str) -> str:
    """Describe the metrics of these names, as far as they are known."""
    metrics = trainer.callback_metrics
    return "  ".join(f"{SHOWN[name]} {float(metrics[name]):.3f}" for name in names if name in metrics)


class ValidationLines(L.Callback):
    """Logs a line for each validation, which stays on the screen and in the log of the run."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            used, number = as_clock(self.budget.used()), trainer.current_epoch + 1
            log.info("%s  epoch %d  step %d  %s", used, number, trainer.global_step, values(trainer, *SHOWN))


class LineProgress(ProgressBar):
    """Logs how far a run is, at most every LINE_EVERY seconds."""

    every = LINE_EVERY

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = budget
        self.shown = now()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.is_due():
            measured = values(trainer, "train/loss_step", "val/miou")
            self.show(f"{epoch(trainer, self.budget)}  {measured}")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.is_due():
            batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
            index = args[3]  # after module, outputs and batch
            self.show(f"validation, batch {index + 1} of {sum(batches)}")

    def is_due(self) -> bool:
        """Tell whether it is time to show something; the time until the next one begins then."""
        due = now() - self.shown >= self.every
        if due:
            self.shown = now()
        return due

    def show(self, text: str) -> None:
        log.info("%s  %s", elapsed(self.budget), text)


class BarProgress(LineProgress):
    """Shows the same in the last line of a terminal, with a bar of the whole run.

    The time comes first: a narrow terminal cuts off the end of the line.
    """

    every = REFRESH
    bar = tqdm(disable=True)  # until training begins

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.bar = tqdm(total=1.0, leave=False, dynamic_ncols=True, bar_format=elapsed(self.budget))

    def show(self, text: str) -> None:
        self.bar.n = self.budget.progress
        self.bar.bar_format = f"{elapsed(self.budget)} {{percentage:3.0f}}%|{{bar}}| {text}"
        self.bar.refresh()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.bar.close()

    on_exception = teardown


class ShortProfiler(SimpleProfiler):
    """Lightning's simple profiler, with a report that fits a terminal: the actions that took the most time.

    An action includes those that it calls.
    """

    def summary(self) -> str:
        total = time.perf_counter() - self.start_time
        rows = [(sum(seconds), len(seconds), name) for name, seconds in self.recorded_durations.items()]
        lines = [f"Profiler report: {total:.1f} s", "  seconds   share    calls  action"]
        for seconds, calls, name in sorted(rows, reverse=True)[:ACTIONS]:
            action = re.sub(r"^\[\w+\](?=\w)|\{.*\}", "", name)  # without the kind, and a callback's settings
            lines.append(f"{seconds:9.2f}  {seconds / total:6.1%}  {calls:7d}  {action[:ACTION]}")
        return "\n".join(lines)


def score_table(scores: Scores, labels: LabelMap) -> str:
    """Format the IoU of each class and the means as a table, with the number of classes not in validation."""
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
