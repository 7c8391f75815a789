"""Callbacks for trainings: each writes down what it saw, or gets into trouble."""

import json
import math
import os
import resource
from pathlib import Path
from typing import Any

import lightning as L
import torch

from cocoseg.training.checkpoints import LastCheckpoint


class Witness(L.Callback):
    """Leaves `<folder>/<rank>.json` and `.pt`: steps, learning rates, and weights and scores at the end."""

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.rates: list[float] = []
        self.batches = 0  # of the last validation

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        self.path(trainer, "pid").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.path(trainer, "step").write_text(str(trainer.global_step))

    def on_validation_start(self, *args: Any) -> None:
        self.batches = 0

    def on_validation_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        said = {"steps": trainer.global_step, "rates": self.rates, "batches": self.batches}
        self.path(trainer, "json").write_text(json.dumps(said))
        content = {"weights": pl_module.state_dict(), "matrix": pl_module.matrix}
        torch.save(content, self.path(trainer, "pt"))

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_end(trainer, pl_module)

    def path(self, trainer: L.Trainer, kind: str) -> Path:
        return self.folder / f"{trainer.global_rank}.{kind}"


class Trouble(L.Callback):
    """In one process, at one step: an error, or a loss that is no number."""

    def __init__(self, kind: str, rank: int, step: int = 2):
        self.kind, self.rank, self.step = kind, rank, step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        if self.kind == "error":
            raise ZeroDivisionError("on purpose")
        loss = pl_module.loss.forward
        pl_module.loss.forward = lambda logits, mask: loss(logits, mask) * float("nan")


class FullDisk(L.Callback):
    """No file can grow beyond 100 bytes from a step on, until another one."""

    def __init__(self, full: int, free: int | None = None):
        self.full, self.free = full, free

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        limit = {self.full: 100, self.free: -1}.get(trainer.global_step)
        if limit is not None:
            limit_files(limit)
            for callback in trainer.callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback._due_at = -math.inf


def limit_files(size: int) -> None:
    """Let the system refuse larger files of this process; -1 ends that."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
