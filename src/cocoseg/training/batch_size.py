"""Batch size and a GPU's memory: the largest batch that fits, and a check before training that one does."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning as L
import torch
from torch import Tensor

from cocoseg.budget.run import Run
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.files import from_here
from cocoseg.networks.device import is_out_of_memory, preserve_state
from cocoseg.networks.outputs import logits_of, training_loss
from cocoseg.overrides import Command, key_of
from cocoseg.run_folder import CHECKPOINTS
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

SHARE = 0.85  # share of the memory to fill; validation, cuDNN and fragmentation need the rest
STEPS = 16  # least number of steps per epoch: a single batch of all images would teach next to nothing
DEFAULT = 16  # images, without a GPU
MOMENTS = 2  # values that Adam keeps for each weight
OF_ATTEMPT = ("run_dir", "resume", "ckpt_path", "data.batch_size", "trainer.accumulate_grad_batches")


def largest_batch(module: SegmentationModule, images: int, trainer: L.Trainer) -> int:
    """Find the largest power of two of images whose training step fits into the GPU's memory, with a margin.

    Args:
        module: is moved to the device.
        images: size of the training set. An epoch keeps at least `STEPS` batches.
        trainer: gives the device and the precision. Without CUDA the result is a fixed number.

    Raises:
        CocosegError: there are several devices.
    """
    if trainer.world_size > 1:
        raise CocosegError("data.batch_size=auto is for one device; give a number")
    device = trainer.strategy.root_device
    most = max(1, images // STEPS)
    if device.type != "cuda":
        return min(DEFAULT, most)
    begin = time.monotonic()
    net = module.to(device).net
    free, _ = torch.cuda.mem_get_info(device)
    room = SHARE * (free + torch.cuda.memory_reserved(device))
    moments = MOMENTS * sum(weight.numel() * weight.element_size() for weight in net.parameters())

    def peak(batch: int) -> float:
        torch.cuda.reset_peak_memory_stats(device)
        training_pass(module, trainer, batch, module.spec.image_size)
        net.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device) + moments

    with preserve_state(net):
        batch = largest_fitting(peak, room, most)
    _empty_cache()
    log.info("data.batch_size=auto: %d, found in %.1f s", batch, time.monotonic() - begin)
    return batch


def largest_fitting(peak: Callable[[int], float], room: float, most: int) -> int:
    """Find the largest power of two, up to `most`, whose peak memory fits into the room; 1 at least.

    Args:
        peak: number of images -> bytes; torch.OutOfMemoryError where they don't fit at all.
        room: bytes.
        most: images.
    """
    batch = 1
    while 2 * batch <= most:
        try:
            if peak(2 * batch) > room:
                break
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        batch *= 2
    return batch


class CheckMemory(L.Callback):
    """Checks on a GPU, before the first step, that training and validation fit into its memory.

    With `augment.start_size` training begins with small images. Without the check a batch that is too large
    would fail hours later, when images reach their full size.
    """

    def __init__(self, data: SegmentationDataModule):
        self.data = data

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if pl_module.device.type == "cuda":
            check_memory(pl_module, trainer, self.data)


def check_memory(module: SegmentationModule, trainer: L.Trainer, data: SegmentationDataModule) -> None:
    """Run one training step and one validation batch at full image size, on blank images.

    Nothing is left of it: weights, statistics of BatchNorm, gradients, optimizer, metrics and random numbers
    are as before.

    Raises:
        torch.OutOfMemoryError: they don't fit.
    """
    size = module.spec.image_size
    weights = [weight for weight in module.net.parameters() if weight.requires_grad]
    has_moments = any(optimizer.state for optimizer in trainer.optimizers)  # after a resume
    with preserve_state(module.net):
        moments = [torch.empty_like(w) for w in weights for _ in range(MOMENTS) if not has_moments]
        training_pass(module, trainer, min(data.batch_size, len(data.train_set)), size)
        module.net.eval()
        image, mask = _blank(module, min(data.batch_size, len(data.val_set)), size)
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            logits = logits_of(module.net(image))
            module.loss(logits, mask)
            logits.argmax(1)
        del moments
    _empty_cache()


def training_pass(module: SegmentationModule, trainer: L.Trainer, images: int, size: tuple[int, int]) -> None:
    """Compute gradients for a blank batch, in the trainer's precision.

    Args:
        module: its network is in training mode; `compiled` is used where it is set.
        images: number of images.
        size: (height, width).
    """
    image, mask = _blank(module, images, size)
    with trainer.precision_plugin.train_step_context():
        loss, _ = training_loss(module.loss, (module.compiled or module.net)(image), mask)
    loss.backward()


def _blank(module: SegmentationModule, images: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (B, 3, H, W), channels last as batches are, and mask (B, H, W) int64, all zeros."""
    image = torch.zeros(images, 3, *size, device=module.device, dtype=module.dtype)
    mask = torch.zeros(images, *size, dtype=torch.int64, device=module.device)
    return image.contiguous(memory_format=torch.channels_last), mask


@contextmanager
def explain_half_batch(data: SegmentationDataModule, trainer: L.Trainer, run: Run) -> Iterator[None]:
    """Report memory that runs out with the command that resumes the run with half the batch.

    A batch of one image can't be halved; its error is passed on.

    Raises:
        TrainingError: instead of the library's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error) or data.batch_size == 1:
            raise
        line = half_batch_command(run, data.batch_size, trainer.accumulate_grad_batches)
        raise TrainingError(
            f"out of memory with data.batch_size={data.batch_size}; to resume with half the batch: {line}"
        ) from error


def half_batch_command(run: Run, batch_size: int, accumulate: int) -> str:
    """Command line that resumes a run with half the batch and twice the accumulation.

    Steps keep their number of images, but for an odd batch, which is rounded down.
    """
    kept = [typed for typed in run.command.overrides if key_of(typed) not in OF_ATTEMPT]
    folder = [typed for typed in run.command.overrides if key_of(typed) == "run_dir"]
    # A run that was resumed from another folder may not have a checkpoint yet.
    is_elsewhere = run.checkpoint is not None and not (run.folder / CHECKPOINTS / "last.ckpt").is_file()
    changed = [
        *(folder or [f"run_dir={from_here(run.folder)}"]),
        f"ckpt_path={run.checkpoint}" if is_elsewhere else "resume=auto",
        f"data.batch_size={batch_size // 2}",
        f"trainer.accumulate_grad_batches={2 * accumulate}",
    ]
    return str(Command((*kept, *changed)))


def _empty_cache() -> None:
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
