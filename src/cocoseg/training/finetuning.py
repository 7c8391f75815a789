"""Training that goes on from an encoder's weights: they stay as they are at first, and move more slowly."""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy
from torch import nn

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError

log = logging.getLogger(__name__)

ENCODERS = ("encoder", "backbone")  # what networks call it: ours and smp's, and torchvision's


def encoder_of(net: nn.Module) -> nn.Module:
    """The part of a network that comes with weights.

    Raises:
        CocosegError: it has none of a known name.
    """
    for name in ENCODERS:
        if isinstance(part := getattr(net, name, None), nn.Module):
            return part
    raise CocosegError(
        f"finetune: {type(net).__name__} has neither an encoder nor a backbone to be frozen or slowed down; "
        "leave finetune.frozen at 0.0 and finetune.encoder_lr at 1.0"
    )


def slowed(groups: Iterable[Any], encoder: nn.Module, lr: float) -> list[dict[str, Any]]:
    """An optimizer's parameters or groups of them, those of the encoder in groups of their own, which come
    last.

    Args:
        lr: of the encoder.
    """
    groups = list(groups)
    if not groups or not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    ours = {id(parameter) for parameter in encoder.parameters()}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in ours]} for group in groups]
    slow = [{**group, "params": [p for p in group["params"] if id(p) in ours], "lr": lr} for group in groups]
    return [group for group in [*others, *slow] if group["params"]]


class FreezeEncoder(L.Callback):
    """Keeps the encoder's weights, and its BatchNorm statistics, as they are for the first part of a run.

    Its parameters belong to the optimizer all along and have no gradients meanwhile, which every optimizer
    of torch passes over; the backward pass ends where the encoder does. DDP, which settles at the start which
    gradients it waits for, computes them all the same; there they are dropped before the optimizer sees them.
    What is frozen depends on the run's progress alone, so a run that goes on does so as it was.

    Args:
        share: of the run; 1 for all of it.
        budget: tells the progress.
    """

    def __init__(self, share: float, budget: Budget):
        self.share = share
        self.budget = budget
        self._frozen: list[nn.Parameter] | None = None  # what is to be thawed
        self._drops = False  # gradients, which are computed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._drops = isinstance(trainer.strategy, ParallelStrategy)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        encoder = encoder_of(pl_module.net)
        if self.share < 1 and self.budget.progress >= self.share:
            if self._frozen is not None:
                self._thaw(encoder)
                log.info("step %d: from here on the encoder is trained, too", trainer.global_step)
            return
        if self._frozen is None:
            log.info("the encoder is frozen for the first %.0f %% of the run", 100 * self.share)
            self._frozen = [weight for weight in encoder.parameters() if weight.requires_grad]
            for weight in self._frozen:
                weight.requires_grad_(self._drops)
                weight.grad = None
        if encoder.training:  # again, after the network was validated or exported
            encoder.eval()

    def on_before_optimizer_step(self, *args: Any) -> None:  # before gradients are clipped, too
        if self._drops:
            for weight in self._frozen or ():
                weight.grad = None

    def _thaw(self, encoder: nn.Module) -> None:
        if self._frozen is not None:
            for weight in self._frozen:
                weight.requires_grad_(True)
            encoder.train()
        self._frozen = None
