"""Checkpoints of a run: the best one by validation mIoU, and the last one."""

import io
import math
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cocoseg.budget.budget import Budget
from cocoseg.budget.signals import StoppedBySignalError
from cocoseg.distributed import agree, rank, world_size
from cocoseg.errors import CocosegError
from cocoseg.files import whole_file, write_bytes


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, on the account of the budget.

    Lightning's own class moves the file from the system's temporary folder: not at once from another disk.
    """

    def __init__(self, budget: Budget):
        super().__init__()
        self.budget = budget

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        with self.budget.saving("checkpoint"):
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            write_bytes(Path(path), buffer.getvalue())


class LastCheckpoint(L.Callback):
    """Saves `last.ckpt`, the state of training, every few minutes, at the end and when a signal ends it.

    They are saved at the end of a step, the first one after the first step, to measure how long it takes.
    """

    def __init__(self, folder: Path, every: timedelta, budget: Budget):
        self.path = folder / "last.ckpt"
        self.every, self.budget = every.total_seconds(), budget
        self.saved_at = -math.inf  # time of the last save
        self.step = -1  # step of the last save
        self.training = self._validating = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.training = True

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        due = time.monotonic() - self.saved_at >= self.every and self.budget.fits_checkpoint()
        if agree(due)[0]:
            self.save(trainer)

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
        # Nothing is saved after a CocosegError (the disk is full, weights are NaN), nor while a checkpoint is
        # being restored, of which half would be written back, nor while other ranks continue.
        if world_size() > 1 and not isinstance(exception, StoppedBySignalError):
            return
        if self.training and not isinstance(exception, CocosegError) and trainer.global_step > 0:
            for callback in trainer.callbacks:
                # In a validation averaged and trained weights have exchanged their places.
                if self._validating and isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_at, self.step = time.monotonic(), trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """Saves `best.ckpt`, by the highest `val/miou`. A resumed run keeps the best one of the earlier run.

    Args:
        folder: folder of the checkpoint.
        export: called on rank zero with the file after each new best one.
        earlier: best checkpoint of the run that is resumed.
    """

    def __init__(self, folder: Path, export: Callable[[Path], None], earlier: Path | None = None):
        super().__init__(
            folder,
            filename="best",
            monitor="val/miou",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # right after every validation
        )
        self.export = export
        self.earlier = earlier

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Scores on a part of the validation set don't compare with scores on all of it.
        if pl_module.scores_are_partial and self.best_model_path:
            return
        before = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        if self.best_model_score is not before and trainer.is_global_zero:
            self.export(Path(self.best_model_path))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Find the best checkpoint on disk: the loaded state does not know later ones, nor another folder."""
        here = Path(self.dirpath, "best.ckpt")
        best = here if here.is_file() else self.earlier
        if best is None:
            return
        content = torch.load(best, map_location="cpu", weights_only=True, mmap=True)
        score = torch.tensor(content["scores"]["miou"] if content["scores"] else -1.0)
        if best != here and rank() == 0:
            with whole_file(here) as temporary:
                shutil.copyfile(best, temporary)
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score = self.kth_value = self.current_score = score
        self.best_k_models = {str(here): score}
