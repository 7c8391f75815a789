"""What can end a training beside its limit: a loss that is no number, memory that runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from cocoseg.errors import TrainingError

LOOK_EVERY = 10  # steps on a GPU, where looking at the loss means waiting for it


class StopAtNoNumber(L.Callback):
    """Ends training when the loss is no number any more, before that gets into a checkpoint."""

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None  # of the last step

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor
    ) -> None:
        self._loss = loss.detach()
        if not loss.is_cuda or trainer.global_step % LOOK_EVERY == 0:
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._look(trainer)  # whatever came since the last look

    def _look(self, trainer: L.Trainer) -> None:
        if self._loss is not None and not torch.isfinite(self._loss):
            raise TrainingError(
                f"the loss is {self._loss.item():g} at step {trainer.global_step}, so training can't go on; "
                "lower optimizer.lr, or set trainer.gradient_clip_val=1"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out; CUDA's libraries have errors of their own for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def explained() -> Iterator[None]:
    """Say in one line that memory ran out, and what to do.

    Raises:
        TrainingError: instead of the library's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            raise TrainingError(
                "out of memory: lower data.batch_size (with trainer.accumulate_grad_batches to make up for "
                "it), data.image_size or model.base_channels"
            ) from error
        said = str(error).lower()
        if any(part in said for part in ("can't allocate memory", "out of memory", "killed by signal")):
            raise TrainingError(
                "out of memory: lower data.batch_size, data.image_size or data.num_workers"
            ) from error
        raise
