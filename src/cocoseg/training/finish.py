"""The end of a run: the exported model, its scores, a sheet of examples, the summary."""

import copy
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cocoseg.budget.budget import END, time_line
from cocoseg.budget.lightning_internals import callbacks_of
from cocoseg.budget.open_run import Run
from cocoseg.budget.signals import StopOnSignal, find_callback
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.dataset import Split
from cocoseg.durations import now
from cocoseg.errors import TrainingError, WriteError, count_of
from cocoseg.figures.comparison import draw_sheet, spread
from cocoseg.files import from_here, save_png, write_json
from cocoseg.labels import LabelMap
from cocoseg.networks.device import without_autotuning
from cocoseg.networks.model_file import read_weights, save_model
from cocoseg.networks.outputs import logits_of
from cocoseg.run_folder import FAILED, FINISHED, METRICS, MODEL, PRUNED, STOPPED, Outcome
from cocoseg.scores import Scores
from cocoseg.sweeps.pruning import PruneTrial
from cocoseg.training.checkpoints import AT_END, BestCheckpoint, LastCheckpoint, disk_of
from cocoseg.training.console import score_table
from cocoseg.training.extra_formats import write_formats
from cocoseg.training.module import SegmentationModule
from cocoseg.training.tensorboard_figures import EXAMPLES, examples_of
from cocoseg.workers import exit_code

log = logging.getLogger(__name__)

SHEET = "examples.png"


class Exporter:
    """Writes the model, its scores and a sheet of examples to the run folder.

    It does so whenever a validation finds a better model, so that there is a valid file from the first
    validation on, and at the end of an attempt that found no better one.

    Attributes:
        module: set by the recipe, which builds it when the data are prepared.
    """

    module: SegmentationModule

    def __init__(self, data: SegmentationDataModule, run: Run):
        self.data, self.run = data, run
        self.scores: Scores | None = None
        self.exported = False

    def __call__(self, checkpoint: Path | None = None) -> None:
        """Export the weights and scores of a checkpoint, or without one those of the module.

        The checkpoint of a validation holds the weights that were scored. The module's may differ: a callback
        that averages weights puts the average in their place for the validation only.
        """
        spec, scores = self.module.spec, self.module.scores
        with self.run.budget.saving("export"):
            net = copy.deepcopy(self.module.net).eval()
            if checkpoint is not None:
                content = read_weights(checkpoint, mmap=True)
                net.load_state_dict(content["state_dict"])
                scores = Scores(**content["scores"]) if content["scores"] else None
            save_model(self.run.folder / MODEL, net.state_dict(), spec, scores.to_dict() if scores else None)
            write_sheet(self.run.folder / SHEET, net, self.data.val_set, spec.labels)
            if scores:
                iou = dict(zip(spec.labels.unique_names, scores.iou, strict=True))
                write_json(self.run.folder / METRICS, {**scores.to_dict(), "iou": iou})
        self.scores, self.exported = scores, True

    def finish(self, trainer: L.Trainer) -> float | None:
        """Export the best weights, write other formats, log a summary and write `outcome.json`.

        A run that ended before its first validation exports the weights it has, without scores.

        Returns:
            The validation mIoU; None without a validation, and on other ranks than zero.

        Raises:
            SystemExit: a signal ended the run, and with it a sweep whose jobs this process runs.
            TrainingError: a full disk ended the run.
            WriteError: the model can't be written.
        """
        stop = find_callback(callbacks_of(trainer), StopOnSignal)
        failure = find_callback(callbacks_of(trainer), LastCheckpoint).failure
        if trainer.is_global_zero:
            with stop.listening():
                self._export_rest(trainer, stop, waits=stop.received is None and not failure)
                model, target = self.run.folder / MODEL, self.module.spec.network["_target_"]
                stopped = stop.received is not None
                write_formats(self.data.config, self.run, model, target, stopped=stopped)
                self._log_summary(trainer, stop)
            # On a full disk this can't be written either, and the first error is the one to report.
            with suppress(WriteError) if failure or stop.received else nullcontext():
                self._write_outcome(trainer, stop)
            if failure:
                raise TrainingError(f"{failure}; free some space; to resume: {self.run.resume_command()}")
        if stop.received is not None:
            sys.exit(exit_code(stop.received))
        return self.scores.miou if self.scores else None

    def _export_rest(self, trainer: L.Trainer, stop: StopOnSignal, *, waits: bool) -> None:
        """Export the best weights, where that has not been done.

        Args:
            stop: notes the signal, which ends the waiting.
            waits: if the disk is full, try again as long as there is time; else an earlier export will do.

        Raises:
            WriteError: the model can't be written.
        """
        best = find_callback(callbacks_of(trainer), BestCheckpoint)
        best.owes_export |= not self.exported
        disk = disk_of(trainer)
        disk.retries.at_end = True
        patience = self.data.config.budget.checkpoint_every.total_seconds() if waits else 0.0
        give_up = now() + min(patience, self.run.budget.left() - END)
        best.try_to_export(disk)
        while disk.retries.reason and not stop.received:
            if now() + AT_END + self.run.budget.expected["export"] > give_up:
                break
            time.sleep(AT_END)
            best.try_to_export(disk)
        for path in disk.kept:
            log.warning("warning: %s is not written: %s", from_here(path), disk.retries.reason)
        if not self.exported or (waits and best.owes_export):
            raise WriteError(disk.retries.reason)

    def _log_summary(self, trainer: L.Trainer, stop: StopOnSignal) -> None:
        last = find_callback(callbacks_of(trainer), LastCheckpoint)
        if stop.received:
            resume = f"; to resume: {self.run.resume_command()}" if last.step >= 0 else ""
            log.warning("%s: stopped at step %d%s", stop.received.name, trainer.global_step, resume)
        if self.scores is not None:
            log.info("\n%s\n", score_table(self.scores, self.module.spec.labels))
        else:
            log.warning("stopped before the first validation: there are no scores")
        shown = from_here(self.run.folder)
        log.info("trained      %s, %s", *map(count_of, self._trained(trainer), ("epoch", "step")))
        if early := self._ended_early(trainer):
            log.info("ended early  %s", early)
        log.info("time         %s", time_line(self.run.budget))
        log.info("run          %s", shown)
        for dashboard in dashboards(trainer.loggers, shown):
            log.info("dashboard    %s", dashboard)
        log.info("model        %s", shown / MODEL)
        log.info("predictions  %s (image | target | prediction | error)", shown / SHEET)

    def _write_outcome(self, trainer: L.Trainer, stop: StopOnSignal) -> None:
        pruned = find_callback(callbacks_of(trainer), PruneTrial).reason
        failure = find_callback(callbacks_of(trainer), LastCheckpoint).failure
        state = STOPPED if stop.received else PRUNED if pruned else FAILED if failure else FINISHED
        reason = stop.received.name if stop.received else pruned or failure or self._ended_early(trainer)
        miou = self.scores.miou if self.scores else None
        Outcome(state, reason, miou, *self._trained(trainer)).write(self.run.folder)

    def _ended_early(self, trainer: L.Trainer) -> str:
        """Say why early stopping ended the run; empty where time or steps did."""
        if not trainer.should_stop or self.run.budget.is_spent():
            return ""
        reasons = (getattr(callback, "stopping_reason_message", None) for callback in callbacks_of(trainer))
        return next(filter(None, reasons), "").removesuffix(" Signaling Trainer to stop.")

    def _trained(self, trainer: L.Trainer) -> tuple[int, int]:
        """Epochs and steps of all attempts; a trainer that had no time left knows none."""
        return (trainer.current_epoch, trainer.global_step) if trainer.global_step else self.run.trained


def dashboards(loggers: Iterable[Logger], folder: Path) -> Iterator[str]:
    """Name the command, address or file of each logger that shows the run; `folder` is the run's."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            yield f"tensorboard --logdir {folder.parent}"
        elif isinstance(logger, WandbLogger):
            if run := logger.version and logger.experiment:  # without time left no run was begun
                yield run.url or f"wandb sync {from_here(Path(run.dir).parent)}"
        elif isinstance(logger, MLFlowLogger):
            yield f"mlflow ui --backend-store-uri {logger._tracking_uri}"
        elif logger.log_dir:
            yield str(from_here(Path(logger.log_dir)))


def write_sheet(path: Path, net: torch.nn.Module, pairs: Split, labels: LabelMap) -> None:
    """Predict some images from all over a data set, and write a PNG of the comparisons, lowest IoU first."""
    indices = spread(len(pairs), EXAMPLES)
    image, mask = (torch.stack(part) for part in zip(*(pairs[i] for i in indices), strict=True))
    like = next(net.parameters())
    with torch.inference_mode(), without_autotuning():
        # One at a time: training may have had memory for single images only.
        logits = (logits_of(net(one.to(like.device, like.dtype))) for one in image.split(1))
        prediction = torch.cat([one.argmax(1).cpu() for one in logits])
    save_png(path, draw_sheet(examples_of(image, mask, prediction), labels), compress_level=3)
