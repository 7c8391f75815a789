"""Batch size and memory: a check before the first step, the largest batch that fits, advice on errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from torch import Tensor

from cocoseg.budget.open_run import Run
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.networks.device import is_out_of_memory, preserve_state
from cocoseg.networks.outputs import logits_of, training_loss
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

SHARE = 0.85  # share of the memory to fill; cuDNN and fragmentation need the rest
STEPS = 16  # least number of steps per epoch: a single batch of all images would teach next to nothing
DEFAULT = 16  # images, without a GPU
MOMENTS = 2  # values that Adam keeps for each weight


class CheckMemory(L.Callback):
    """Checks on a GPU, before the first step, that training and validation fit into its memory.

    With `augment.start_size` training begins with small images. Without the check a batch that is too large
    would fail hours later, when images reach their full size.
    """

    def __init__(self, data: SegmentationDataModule):
        self.data = data

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if pl_module.device.type == "cuda":
            training, validation = (len(part) for part in (self.data.train_set, self.data.val_set))
            batch = self.data.batch_size
            try_step(pl_module, trainer, min(batch, training), min(batch, validation))


def try_step(module: SegmentationModule, trainer: L.Trainer, training: int, validation: int) -> None:
    """Use the memory of one training step and one validation batch at full image size, on blank images.

    Instead of the optimizer's step, room for Adam's moments is taken. Weights, statistics of BatchNorm,
    optimizer, metrics and random numbers are as before; gradients are None.

    Args:
        module: on its device.
        trainer: gives the precision.
        training, validation: number of images.

    Raises:
        torch.OutOfMemoryError: they don't fit into the memory.
    """
    size = module.spec.image_size
    weights = [weight for weight in module.net.parameters() if weight.requires_grad]
    has_moments = any(optimizer.state for optimizer in trainer.optimizers)  # after a resume
    with preserve_state(module.net):
        moments = [torch.empty_like(w) for w in weights for _ in range(MOMENTS) if not has_moments]
        training_pass(module, trainer, training, size)
        module.net.eval()
        image, mask = _blank(module, validation, size)
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            logits = logits_of(module.net(image))
            module.loss(logits, mask)
            logits.argmax(1)
        del moments
    torch.cuda.empty_cache()  # does nothing without a GPU


def training_pass(module: SegmentationModule, trainer: L.Trainer, images: int, size: tuple[int, int]) -> None:
    """Compute gradients for a blank batch of images of (height, width), in the trainer's precision."""
    image, mask = _blank(module, images, size)
    with trainer.precision_plugin.train_step_context():
        loss, _ = training_loss(module.loss, (module.compiled or module.net)(image), mask)
    loss.backward()


def _blank(module: SegmentationModule, images: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Make image (B, 3, H, W), channels last as batches are, and mask (B, H, W) int64, all zeros."""
    like = next(module.parameters())
    image = torch.zeros(images, 3, *size, device=like.device, dtype=like.dtype)
    mask = torch.zeros(images, *size, dtype=torch.int64, device=like.device)
    return image.contiguous(memory_format=torch.channels_last), mask


def largest_batch(module: SegmentationModule, images: int, trainer: L.Trainer) -> int:
    """Find the largest power of two of images that fits into the GPU's memory, with a margin.

    Args:
        module: is moved to the device.
        images: number of training images, of which an epoch makes at least `STEPS` batches.
        trainer: gives the device and the precision. Without CUDA nothing is tried: DEFAULT images, or fewer.

    Raises:
        CocosegError: there are several devices.
    """
    if trainer.world_size > 1:
        raise CocosegError("data.batch_size=auto is for one device; give a number")
    device = trainer.strategy.root_device
    most = max(1, images // STEPS)
    if device.type != "cuda":
        return min(DEFAULT, most)
    module.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    room = SHARE * (free + torch.cuda.memory_reserved(device))

    def fits(batch: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            try_step(module, trainer, batch, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return torch.cuda.max_memory_allocated(device) <= room

    batch = 1
    while 2 * batch <= most and fits(2 * batch):
        batch *= 2
    torch.cuda.empty_cache()
    log.info("data.batch_size=auto: %d", batch)
    return batch


@contextmanager
def explain_batch_errors(data: SegmentationDataModule, trainer: L.Trainer, run: Run) -> Iterator[None]:
    """Say what to do about a batch that is too large for the memory, or too small for BatchNorm.

    Raises:
        TrainingError: memory runs out; it names the command that resumes the run with half the batch. With a
            batch of one image torch's own error is raised.
        CocosegError: a batch is too small for BatchNorm.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise CocosegError(
            "data.batch_size, data.image_size: a batch of a single small image leaves the network's deepest "
            "level one value per channel, which BatchNorm can't normalize; make one of the two larger"
        ) from error
    except RuntimeError as error:
        if not is_out_of_memory(error) or data.batch_size == 1:
            raise
        command = run.resume_command(
            f"data.batch_size={data.batch_size // 2}",
            f"trainer.accumulate_grad_batches={2 * trainer.accumulate_grad_batches}",
        )
        raise TrainingError(
            f"out of memory with data.batch_size={data.batch_size}; to resume with half the batch: {command}"
        ) from error
