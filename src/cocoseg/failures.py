"""What can end a training beside its limit: a loss that is no number, memory that runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch

from cocoseg.errors import TrainingError

LOOK_EVERY = 10  # steps on a GPU, where looking at the loss means waiting for it


class StopAtNoNumber(L.Callback):
    """Ends training when the loss is no number any more, before that gets into a checkpoint."""

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor
    ) -> None:
        if loss.is_cuda and trainer.global_step % LOOK_EVERY:
            return
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item():g} at step {trainer.global_step}, so training can't go on; lower "
                "optimizer.lr, or set trainer.gradient_clip_val=1"
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
