"""What can end a training beside its limit: a loss that is no number, memory that runs out."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from cocoseg.errors import TrainingError
from cocoseg.processes import agreed, is_lost, rank

LOOK_EVERY = 10  # steps on a GPU, where looking at the loss means waiting for it


class StopAtNoNumber(L.Callback):
    """Ends training when the loss is no number any more, before that gets into a checkpoint."""

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None  # of the last step

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor
    ) -> None:
        self._loss = loss.detach()
        if loss.is_cuda and trainer.global_step % LOOK_EVERY:
            return
        _require_number(trainer, self._loss)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Whatever came since the last look.
        _require_number(trainer, self._loss)


def _require_number(trainer: L.Trainer, loss: torch.Tensor | None) -> None:
    """End all processes where the loss of any is no number; the first one says it for all."""
    finite = loss is None or bool(torch.isfinite(loss))
    if not agreed(noticed=not finite)[0]:
        return
    if rank() > 0:
        sys.exit()
    value = "no number on another device" if finite else f"{loss.item():g}"
    raise TrainingError(
        f"the loss is {value} at step {trainer.global_step}, so training can't go on; lower optimizer.lr, or "
        "set trainer.gradient_clip_val=1"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out; CUDA's libraries have errors of their own for it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


TRAINING = (
    "data.batch_size (with trainer.accumulate_grad_batches to make up for it), data.image_size or "
    "model.base_channels"
)


@contextmanager
def explained(smaller: str = TRAINING) -> Iterator[None]:
    """Say in one line that memory ran out, and what to do; or that another process has ended, which says why
    itself, as the first one does for all others.

    Args:
        smaller: the keys to lower.

    Raises:
        TrainingError: instead of the library's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_lost(error):
            if rank() > 0:
                sys.exit(1)
            raise TrainingError("another process of this training has ended, see above") from error
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            raise TrainingError(f"out of memory: lower {smaller}") from error
        said = str(error).lower()
        if any(part in said for part in ("can't allocate memory", "out of memory", "killed by signal")):
            raise TrainingError(
                "out of memory: lower data.batch_size, data.image_size or data.num_workers"
            ) from error
        raise
