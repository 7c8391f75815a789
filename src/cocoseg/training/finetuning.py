"""Fine-tuning of an encoder that comes with weights: frozen at first, slower later."""

import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ParallelStrategy
from torch import nn

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError

log = logging.getLogger(__name__)

ENCODERS = ("encoder", "backbone")  # names in our and smp's networks, and in torchvision's


def encoder_of(net: nn.Module) -> nn.Module:
    """Return the part of a network that comes with weights.

    Raises:
        CocosegError: no part has a known name.
    """
    for name in ENCODERS:
        if isinstance(part := getattr(net, name, None), nn.Module):
            return part
    raise CocosegError(
        f"finetune: {type(net).__name__} has neither an encoder nor a backbone to be frozen or slowed down; "
        "leave finetune.frozen at 0.0 and finetune.encoder_lr at 1.0"
    )


def encoder_lr_groups(groups: Iterable[Any], encoder: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Split an optimizer's parameters, or each group of them: the encoder's last, with a rate of their own.

    Args:
        groups: parameters, or dictionaries with `params`.
        encoder: part of the network.
        lr: learning rate of the encoder.
    """
    groups = list(groups)
    if not groups or not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    ours = {id(parameter) for parameter in encoder.parameters()}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in ours]} for group in groups]
    slow = [{**group, "params": [p for p in group["params"] if id(p) in ours], "lr": lr} for group in groups]
    return [group for group in [*others, *slow] if group["params"]]


class FreezeEncoder(L.Callback):
    """Keeps the encoder's weights and BatchNorm statistics unchanged for the first part of a run.

    Its parameters belong to the optimizer from the start and have no gradients meanwhile, so that every
    optimizer of torch skips them; the backward pass ends before the encoder. DDP decides at the start which
    gradients it waits for and computes them all; there they are dropped before the optimizer sees them.
    Only the run's progress decides what is frozen, so a resumed run continues unchanged.

    Args:
        share: share of the run, 1 for all of it.
        budget: its `progress` counts.
    """

    def __init__(self, share: float, budget: Budget):
        self.share, self.budget = share, budget
        self._frozen: list[nn.Parameter] | None = None  # parameters to be trained later
        self._drops = False  # gradients are computed, and dropped

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._drops = isinstance(trainer.strategy, ParallelStrategy)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        encoder = encoder_of(pl_module.net)
        if self.share < 1 and self.budget.progress >= self.share:
            if self._frozen is not None:
                for weight in self._frozen:
                    weight.requires_grad_(True)
                self._frozen = None
                encoder.train()
                log.info("step %d: from here on the encoder is trained, too", trainer.global_step)
            return
        if self._frozen is None:
            log.info("the encoder is frozen for the first %.0f %% of the run", 100 * self.share)
            self._frozen = [weight for weight in encoder.parameters() if weight.requires_grad]
            for weight in self._frozen:
                weight.requires_grad_(self._drops)
                weight.grad = None
        encoder.eval()  # every time: after a validation or an export the whole network is in training mode

    def on_before_optimizer_step(self, *args: Any) -> None:  # before gradients are clipped, too
        if self._drops:
            for weight in self._frozen or ():
                weight.grad = None
