"""The optimizer: fused where torch has that, and its groups of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cocoseg.cli import build
from cocoseg.config import Config
from cocoseg.errors import CocosegError
from cocoseg.networks.device import resolve_precision
from cocoseg.training.finetuning import encoder_of

# Optimizers with `fused`: all parameters in one operation. Torch's own choice is a loop over them on a CPU.
FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")

# Precisions in which Lightning refuses to clip gradients before a fused step. With float16 that step
# itself undoes the scaling of the gradients, so clipping before it would be wrong; bfloat16 is refused, too.
MIXED = ("16-mixed", "bf16-mixed", "16", "bf16")


def optimizer_of(config: Config, net: nn.Module) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return the function that makes the optimizer of a network from its parameters.

    Raises:
        CocosegError: the settings contradict each other, or the network has no encoder.
    """
    node = with_fused(config.optimizer or {}, resolve_precision(config.trainer))
    share = config.finetune.encoder_lr
    encoder = encoder_of(net) if config.finetune.frozen or share != 1 else None

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        slow = encoder.parameters() if encoder is not None and share != 1 else ()
        return build(node, "optimizer", parameter_groups(node, parameters, slow, share))

    return make


def with_fused(optimizer: dict[str, Any], trainer: dict[str, Any]) -> dict[str, Any]:
    """Return the optimizer's node, with `fused` where torch has that and the user has not decided.

    Raises:
        CocosegError: the user asks for a fused step, and for clipping in mixed precision.
    """
    clips = trainer.get("gradient_clip_val") and str(trainer.get("precision")) in MIXED
    if clips and optimizer.get("fused"):
        raise CocosegError(
            "optimizer.fused=true: a fused step can't follow trainer.gradient_clip_val with "
            f"trainer.precision={trainer['precision']}; leave out optimizer.fused"
        )
    if clips or optimizer.get("_target_") not in FUSED or {"fused", "foreach"} & optimizer.keys():
        return optimizer
    return {**optimizer, "fused": True}


def parameter_groups(
    optimizer: dict[str, Any],
    parameters: Iterable[nn.Parameter],
    slow: Iterable[nn.Parameter] = (),
    share: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: weights; biases and scales; then both of the encoder.

    Biases and the scales of norms don't decay: their size is no sign of overfitting. Without weight decay
    they are among the weights. Empty groups are left out.

    Args:
        optimizer: `_target_` and arguments.
        parameters: those to be trained.
        slow: those of the encoder, if it has another learning rate.
        share: learning rate of the encoder divided by that of the others.
    """
    of_encoder = set(map(id, slow))
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in parameters:
        is_slow = id(parameter) in of_encoder
        is_scale = bool(optimizer.get("weight_decay")) and parameter.ndim <= 1
        options = {"weight_decay": 0.0} if is_scale else {}
        if is_slow:
            options["lr"] = share * optimizer["lr"]
        group = groups.setdefault((is_slow, is_scale), {"params": [], **options})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
