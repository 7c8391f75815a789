"""Fine-tuning of an encoder that comes with weights: frozen at first, slower later."""

import logging
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


class FreezeEncoder(L.Callback):
    """Keeps the encoder's weights and BatchNorm statistics unchanged for the first part of a run.

    Its parameters belong to the optimizer from the start. While they are frozen they have no gradients, so
    that torch's optimizers skip them. DDP decides at the start which gradients it waits for. There all are
    computed, and dropped before the optimizer sees them.

    Args:
        share: share of the run in which the encoder is frozen; 1 for the whole run.
        budget: tells the progress.
    """

    def __init__(self, share: float, budget: Budget):
        self.share, self.budget = share, budget
        self._frozen: list[nn.Parameter] | None = None  # parameters to be trained later

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        net: Any = pl_module.net
        encoder = encoder_of(net)
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
            is_ddp = isinstance(trainer.strategy, ParallelStrategy)
            for weight in self._frozen:
                weight.requires_grad_(is_ddp)
                weight.grad = None
        encoder.eval()  # every time: a callback may have put the whole network in training mode

    def on_before_optimizer_step(self, *args: Any) -> None:  # this comes before gradients are clipped
        for weight in self._frozen or ():
            weight.grad = None
