"""`torch.compile` for training, where the time left repays it. Validation, of other sizes, stays as it is."""

import logging
import time
from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor, nn

from cocoseg.budget import Budget, clock
from cocoseg.config import AUTO
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.device import is_out_of_memory, untouched
from cocoseg.errors import TrainingError
from cocoseg.outputs import Output, parts_of
from cocoseg.processes import agreed

log = logging.getLogger(__name__)

WORTH_FROM = 15 * 60.0  # seconds left: compiling takes up to a minute, and may save a tenth
TIMED = 3  # passes


class CompileNetwork(L.Callback):
    """Compiles the network's training pass before the first step, and tries it out.

    With `auto` only on a GPU (on CPUs it was measured to gain nothing), with a time limit of which enough is
    left, and kept only where it is faster.

    Args:
        mode: True or `auto`.
        data: its batch size counts when training begins.
    """

    def __init__(self, mode: bool | str, data: SegmentationDataModule, budget: Budget):
        self.mode = mode
        self.data = data
        self.budget = budget

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.compiled = None  # of another batch size, where memory ran out
        if self.mode == AUTO and not agreed(self._is_worthwhile(pl_module.device))[0]:
            return
        net = pl_module.net
        torch.compiler.reset()  # of the jobs before it in a sweep: after eight it would compile no more
        compiled = torch.compile(lambda image: net(image), dynamic=False)
        batch = min(self.data.batch_size, len(self.data.train_set))
        shape = batch, 3, *pl_module.spec.image_size
        image = torch.zeros(shape, device=pl_module.device, dtype=pl_module.dtype)
        image = image.contiguous(memory_format=torch.channels_last)  # as batches are
        begin = time.monotonic()
        with trainer.precision_plugin.train_step_context(), untouched(net):
            before = _seconds_per_pass(net, net, image) if self.mode == AUTO else float("inf")
            try:
                after = _seconds_per_pass(compiled, net, image)
            except Exception as error:  # a missing compiler, a network it can't take: what it raises varies
                if is_out_of_memory(error):
                    raise  # for that a smaller batch is the answer
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                if self.mode != AUTO:
                    raise TrainingError(
                        f"compile: torch.compile failed ({reason}); set compile=false"
                    ) from error
                log.warning("compile: torch.compile failed (%s); training goes on without", reason)
                after = float("inf")  # other processes wait to hear of it
        took = clock(time.monotonic() - begin)
        if agreed(after < before)[0]:
            pl_module.compiled = compiled
            log.info("compile: the network is compiled, in %s", took)
        elif after < float("inf"):
            log.info("compile: no faster than without, found out in %s", took)

    def _is_worthwhile(self, device: torch.device) -> bool:
        limited = self.budget.limit is not None  # else nothing may depend on the clock
        return device.type == "cuda" and limited and self.budget.left() >= WORTH_FROM


def _seconds_per_pass(function: Callable[[Tensor], Output], net: nn.Module, image: Tensor) -> float:
    """Forward and backward, after a first one that may compile: the shortest of a few."""
    seconds = []
    for _ in range(1 + TIMED):
        _wait(image.device)
        begin = time.perf_counter()
        sum(part.float().mean() for part in parts_of(function(image))).backward()
        _wait(image.device)
        seconds.append(time.perf_counter() - begin)
        net.zero_grad(set_to_none=True)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
