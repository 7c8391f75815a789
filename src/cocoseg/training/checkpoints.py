"""Checkpoints of a run: the best one by validation mIoU, and the last one.

A checkpoint that can't be written stays in memory and is tried again; `Retries` says when.
"""

import io
import logging
import math
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cocoseg.budget.budget import Budget
from cocoseg.budget.lightning_internals import callbacks_of
from cocoseg.budget.signals import StoppedBySignalError
from cocoseg.distributed import from_rank_zero, rank, world_size
from cocoseg.durations import as_clock, now
from cocoseg.errors import CocosegError, WriteError
from cocoseg.files import whole_file, write_bytes
from cocoseg.networks.model_file import read_weights
from cocoseg.run_folder import BEST, LAST

log = logging.getLogger(__name__)

# Seconds from a failed write to the next try: at first, later, and at the end of a run.
FIRST_RETRY, RETRY, AT_END = 10.0, 60.0, 1.0


class Retries:
    """Time of the next try to write what a full disk refused, and of the first failure.

    Attributes:
        at: time of the next try, as `now()`.
        reason: error of the last try; empty after one that succeeded.
        at_end: the run is ending, so tries follow each other soon.
    """

    def __init__(self) -> None:
        self.at, self._since = -math.inf, math.inf
        self.reason = ""
        self.at_end = False

    def note(self, error: WriteError | None) -> None:
        """Note the end of a try; a failure is a warning."""
        if error is None:
            self.at, self._since, self.reason = -math.inf, math.inf, ""
            return
        is_news, self.reason = self.reason != str(error), str(error)
        self._since = min(self._since, now())
        wait = AT_END if self.at_end else FIRST_RETRY if self.failing() < FIRST_RETRY else RETRY
        self.at = now() + wait
        if is_news or not self.at_end:
            log.warning("warning: %s; the run goes on, next try in %g s", error, wait)

    def are_due(self) -> bool:
        """Tell whether it is time to write; always where the last try succeeded."""
        return self.at_end or now() >= self.at

    def failing(self) -> float:
        """Seconds since the first failure after the last success."""
        return max(0.0, now() - self._since)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and charges the time to the budget.

    Lightning's own class moves the file from the system's temporary folder, which may be on another disk.

    Attributes:
        kept: content of files that could not be written, by path.
    """

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = budget
        self.retries = Retries()
        self.kept: dict[Path, bytes] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, or keep it in memory where that fails."""
        with self.budget.saving("checkpoint"):
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            self._write(Path(path), buffer.getvalue())

    def write_kept(self) -> None:
        """Try again to write what is kept."""
        for path, content in list(self.kept.items()):
            with self.budget.saving("checkpoint"):
                self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        if not self.retries.are_due():
            self.kept[path] = content
            return
        try:
            write_bytes(path, content)
        except WriteError as error:
            self.kept[path] = content
            self.retries.note(error)
        else:
            self.kept.pop(path, None)
            self.retries.note(None)


def disk_of(trainer: L.Trainer) -> WholeCheckpointIO:
    """Return what writes the checkpoints of a trainer."""
    disk = trainer.strategy.checkpoint_io
    assert isinstance(disk, WholeCheckpointIO)
    return disk


class LastCheckpoint(L.Callback):
    """Saves `last.ckpt`, the state of training, every few minutes, at the end and when a signal ends it.

    It is saved at the end of a step. The first save follows the first step, to measure how long it takes.
    Training ends when no file could be written for the time `every`.

    Attributes:
        step: step of the last save that succeeded; -1 before the first.
        failure: reason why it ended the training, or empty.
    """

    def __init__(self, folder: Path, every: timedelta, budget: Budget):
        self.path = folder / LAST
        self.every, self.budget = every.total_seconds(), budget
        self.step = -1
        self.failure = ""
        self.training = self._validating = False
        self._due_at = -math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        due = now() >= self._due_at and self.budget.fits_checkpoint()
        if not from_rank_zero(due)[0]:
            return
        self.save(trainer)
        retries = disk_of(trainer).retries
        if from_rank_zero(retries.failing() >= self.every)[0]:
            self.failure = f"no checkpoint could be written for {as_clock(self.every)}: {retries.reason}"
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        self.training = False

    def on_validation_epoch_start(self, *args: Any) -> None:
        self._validating = True

    def on_validation_epoch_end(self, *args: Any) -> None:
        self._validating = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if rank() == 0:  # files that wait for space hold states from before the exception
            disk_of(trainer).retries.at_end = True
            disk_of(trainer).write_kept()
        # Nothing is saved after a CocosegError (the disk is full, weights are NaN), while a checkpoint is
        # restored (half of it would be written back), or while other ranks continue.
        if world_size() > 1 and not isinstance(exception, StoppedBySignalError):
            return
        if self.training and not isinstance(exception, CocosegError) and trainer.global_step > 0:
            for callback in callbacks_of(trainer):
                # During a validation the averaged weights are in the place of the trained ones.
                if self._validating and isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        disk = disk_of(trainer)
        if self.path in disk.kept:  # the next try saves a newer state
            self._due_at = disk.retries.at
        else:
            self._due_at, self.step = now() + self.every, trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """Saves `best.ckpt`, by the highest `val/miou`. A resumed run keeps the best one of the earlier run.

    Args:
        folder: folder of the checkpoint.
        export: called on rank zero with the file after each new best one.
        earlier: best checkpoint of the run that is resumed.

    Attributes:
        owes_export: the best checkpoint is not exported yet.
    """

    def __init__(self, folder: Path, export: Callable[[Path | None], None], earlier: Path | None = None):
        super().__init__(
            folder,
            filename=BEST.removesuffix(".ckpt"),
            monitor="val/miou",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # right after every validation
        )
        self.export = export
        self.earlier = earlier
        self.owes_export = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Scores on a part of the validation set don't compare with scores on all of it.
        if pl_module.scores_are_partial and self.best_model_path:
            return
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before and trainer.is_global_zero:
            self.owes_export = True
            self.try_to_export(disk_of(trainer))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_batch_end(trainer, *args)
        if self.owes_export and disk_of(trainer).retries.are_due():
            self.try_to_export(disk_of(trainer))

    def try_to_export(self, disk: WholeCheckpointIO) -> None:
        """Write checkpoints that wait, then export the best one; on a full disk the export stays owed."""
        disk.write_kept()
        if not self.owes_export or Path(self.best_model_path) in disk.kept or not disk.retries.are_due():
            return
        best = self.best_model_path or self.earlier
        try:
            self.export(Path(best) if best else None)
        except WriteError as error:
            disk.retries.note(error)
        else:
            self.owes_export = False
            if not disk.kept:
                disk.retries.note(None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Find the best checkpoint on disk: the loaded state knows neither later ones nor another folder."""
        here = Path(self.dirpath or "", BEST)
        best = here if here.is_file() else self.earlier
        if best is None:
            return
        scores = read_weights(best, mmap=True)["scores"]
        score = torch.tensor(scores["miou"] if scores else -1.0)
        if best != here and rank() == 0:
            with whole_file(here) as temporary:
                shutil.copyfile(best, temporary)
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score = self.kth_value = self.current_score = score
        self.best_k_models = {str(here): score}
