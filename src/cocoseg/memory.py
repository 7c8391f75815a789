"""Batches that a GPU's memory has room for: the largest one, and a smaller one where it runs out."""

import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch

from cocoseg.checkpoints import LastCheckpoint
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.device import is_out_of_memory, untouched
from cocoseg.errors import CocosegError
from cocoseg.module import SegmentationModule
from cocoseg.outputs import training_loss
from cocoseg.processes import count

log = logging.getLogger(__name__)

SHARE = 0.85  # of the memory: validation, cuDNN's work space and fragmentation need the rest
STEPS = 16  # that an epoch keeps at least: a batch of all images would learn next to nothing from them
DEFAULT = 16  # images, where there is no GPU


def largest_batch(module: SegmentationModule, images: int, trainer: L.Trainer) -> int:
    """The largest power of two of images whose training step fits into the GPU's memory with a margin.

    Args:
        module: is moved to the device.
        images: in the training set, of which an epoch shall keep `STEPS` batches at least.
        trainer: says on which device, and in which precision; on any but a CUDA device the answer is a fixed
            number.

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
    # Adam keeps two values for each weight.
    optimizer = 2 * sum(weight.numel() * weight.element_size() for weight in net.parameters())
    shape = module.spec.image_size

    def peak(batch: int) -> float:
        torch.cuda.reset_peak_memory_stats(device)
        image = torch.zeros(batch, 3, *shape, device=device)
        mask = torch.zeros(batch, *shape, dtype=torch.int64, device=device)
        with trainer.precision_plugin.train_step_context():
            loss, _ = training_loss(module.loss, net(image), mask)
        loss.backward()
        net.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device) + optimizer

    with untouched(net):
        batch = largest_fitting(peak, room, most)
    _empty_cache()
    log.info("data.batch_size=auto: %d, found in %.1f s", batch, time.monotonic() - begin)
    return batch


def largest_fitting(peak: Callable[[int], float], room: float, most: int) -> int:
    """The largest power of two, up to `most`, whose peak of memory fits into the room; 1 at least.

    One that is bound not to fit, by what the last two needed, is not tried.

    Args:
        peak: bytes that a batch of so many images needs; torch.OutOfMemoryError where that is too much.
    """
    batch, needed, before = 1, 0.0, 0.0
    for candidate in (2**power for power in range(most.bit_length())):
        if needed + 2 * (needed - before) > room and candidate > 2:
            break
        try:
            before, needed = needed, peak(candidate)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if needed > room:
            break
        batch = candidate
    return batch


class FitInMemory:
    """Training that, where a GPU's memory runs out, goes on from where it stood with half the batch and twice
    the accumulation, which leaves the size of a step as it was (an odd batch is rounded down). The epoch in
    which it happens counts the batches done as half ones, and so is longer.

    Args:
        make_trainer: with `accumulate_grad_batches` -> a trainer; a failed one can't be used again.
        accumulate: batches per step, to begin with.
        last: where training stands when it fails.

    Attributes:
        trainer: of the attempt in progress.
    """

    def __init__(self, make_trainer: Callable[..., L.Trainer], accumulate: int, last: LastCheckpoint):
        self.make_trainer = make_trainer
        self.accumulate = accumulate
        self.last = last
        self.trainer = make_trainer(accumulate_grad_batches=accumulate)

    def __call__(
        self, module: SegmentationModule, data: SegmentationDataModule, checkpoint: str | Path | None
    ) -> None:
        """Train, from a checkpoint where there is one.

        Raises:
            torch.OutOfMemoryError: not even a single image fits.
        """
        while True:
            try:
                self.trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
                return
            except RuntimeError as error:
                # Other processes may have had room, and be at the next step.
                if not is_out_of_memory(error) or data.batch_size == 1 or count() > 1:
                    raise
            # Beyond the handler, whose exception holds on to the tensors of the step that failed.
            data.batch_size //= 2
            self.accumulate *= 2
            log.warning(
                "out of memory: going on with data.batch_size=%d trainer.accumulate_grad_batches=%d",
                data.batch_size,
                self.accumulate,
            )
            if self.last.step >= 0:
                checkpoint = self.last.path
            module.zero_grad(set_to_none=True)
            self.trainer = self.make_trainer(accumulate_grad_batches=self.accumulate)
            _empty_cache()


def _empty_cache() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
