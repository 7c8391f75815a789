"""Ends a training whose loss is NaN or infinite."""

import sys
from typing import Any

import lightning as L
from torch import Tensor

from cocoseg.distributed import largest, rank
from cocoseg.errors import TrainingError

CHECK_EVERY = 10  # steps on a GPU, where reading the loss waits for the device


class StopOnNaN(L.Callback):
    """Ends training once the loss is NaN or infinite, before such weights get into a checkpoint."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None  # loss of the last step

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()
        if loss.is_cuda and trainer.global_step % CHECK_EVERY:
            return
        _require_finite(trainer, self._loss)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _require_finite(trainer, self._loss)  # the loss of a step since the last check


def _require_finite(trainer: L.Trainer, loss: Tensor | None) -> None:
    """End all ranks if the loss of any is not finite; rank zero reports it for all."""
    finite = loss is None or bool(loss.isfinite())
    if not largest(not finite)[0]:
        return
    if rank() > 0:
        sys.exit()
    value = "NaN or infinite on another rank" if loss is None or finite else f"{loss.item():g}"
    raise TrainingError(
        f"the loss is {value} at step {trainer.global_step}, so training ends; lower optimizer.lr, or set "
        "trainer.gradient_clip_val=1"
    )
