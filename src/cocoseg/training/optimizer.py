"""The optimizer's node and parameters, as torch does best with them."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cocoseg.errors import CocosegError

# They take `fused`: all parameters in one go. (torch's own choice is a loop over them on a CPU, and a few
# operations for each of several groups on a GPU.)
FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")


# Precisions in which Lightning refuses to clip gradients before a fused step: one that scales a float16 loss
# undoes that inside the step, and Lightning doesn't look whether a scaler is there.
MIXED = ("16-mixed", "bf16-mixed", "16", "bf16")


def with_fused(optimizer: Any, settings: dict[str, Any]) -> Any:
    """The optimizer's node, fused where torch has that and the user has not decided.

    Args:
        optimizer: `_target_` and arguments.
        settings: the trainer's, settled.

    Raises:
        CocosegError: the user asks for a fused step, and for clipping in mixed precision.
    """
    if not isinstance(optimizer, dict):
        return optimizer
    clips = settings.get("gradient_clip_val") and str(settings.get("precision")) in MIXED
    if clips and optimizer.get("fused"):
        raise CocosegError(
            "optimizer.fused=true: a fused step can't follow trainer.gradient_clip_val with "
            f"trainer.precision={settings['precision']}; leave out optimizer.fused"
        )
    if clips or optimizer.get("_target_") not in FUSED or {"fused", "foreach"} & optimizer.keys():
        return optimizer
    known = settings.get("accelerator", "auto") in ("auto", "gpu", "cuda", "cpu")
    return {**optimizer, "fused": True} if known else optimizer


def decayed(optimizer: Any, parameters: Iterable[nn.Parameter]) -> list[Any]:
    """The parameters, in two groups where weights decay: biases and scales of norms, whose size is no sign
    of overfitting, don't."""
    parameters = list(parameters)
    if not isinstance(optimizer, dict) or not optimizer.get("weight_decay"):
        return parameters
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def require_same_groups(optimizer: Optimizer, state: dict[str, Any], where: str) -> None:
    """Refuse an optimizer's saved state whose groups of parameters are others.

    Args:
        state: of `Optimizer.state_dict()`.
        where: names the file.

    Raises:
        CocosegError: says which settings make groups.
    """
    ours = [len(group["params"]) for group in optimizer.param_groups]
    theirs = [len(group["params"]) for group in state["param_groups"]]
    if ours != theirs:
        raise CocosegError(
            f"{where}: its optimizer has the weights in groups of {theirs}, and here they are {ours}; keep "
            "finetune.encoder_lr and optimizer.weight_decay as they were"
        )
