"""What a run saves: the best checkpoint by validation mIoU, the last one, the exported model."""

import io
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cocoseg.budget import Budget
from cocoseg.errors import CocosegError
from cocoseg.files import whole_file, write_bytes


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and tells the budget how long it took.

    Lightning's own writes to the system's temporary folder and moves the file, which is no longer one step
    where that folder is on another disk.
    """

    def __init__(self, budget: Budget):
        self.budget = budget

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        begin = time.monotonic()
        with self.budget.timed("saving"):
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            write_bytes(Path(path), buffer.getvalue())
        self.budget.expected.checkpoint = max(self.budget.expected.checkpoint, time.monotonic() - begin)


class LastCheckpoint(L.Callback):
    """`last.ckpt`: where training stands: every few minutes, at the end, and when a signal ends it.

    Args:
        folder: of the checkpoint.
        every: how often, at the end of a step.
    """

    def __init__(self, folder: Path, every: timedelta):
        self.path = folder / "last.ckpt"
        self.every = every.total_seconds()
        self.saved_at = time.monotonic()
        self.step = -1  # of the last save

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        due = time.monotonic() - self.saved_at >= self.every
        if trainer.strategy.broadcast(due) if trainer.world_size > 1 else due:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        # Not after an error of ours: the disk is full, or the weights are no numbers any more.
        if not isinstance(exception, CocosegError) and trainer.global_step > 0:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_at, self.step = time.monotonic(), trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the highest `val/miou`. A run that goes on from a checkpoint takes its best along.

    Args:
        folder: of the checkpoint.
        export: called whenever there is a new best one.
    """

    def __init__(self, folder: Path, export: Callable[[], None]):
        super().__init__(
            folder,
            filename="best",
            monitor="val/miou",
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,  # right after every validation
        )
        self.export = export

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            self.export()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's own forgets the score where the folder is another, so any model would be best."""
        before = Path(state_dict["best_model_path"])
        if not before.is_file():
            return
        here = Path(self.dirpath, "best.ckpt")
        if before != here:
            with whole_file(here) as temporary:
                shutil.copyfile(before, temporary)
        score = state_dict["best_model_score"]
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score = self.kth_value = self.current_score = score
        self.best_k_models = {str(here): score}
