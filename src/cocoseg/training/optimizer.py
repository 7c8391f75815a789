"""The optimizer: fused where torch has that, and its groups of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cocoseg.cli import build
from cocoseg.config import Config
from cocoseg.errors import CocosegError
from cocoseg.training.finetuning import encoder_lr_groups, encoder_of

# Optimizers with `fused`: all parameters in one operation. Torch's own choice is a loop over them on a CPU.
FUSED = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD")

# Precisions in which Lightning refuses to clip gradients before a fused step: one that scales a float16 loss
# undoes that inside the step, and Lightning does not check whether there is a scaler.
MIXED = ("16-mixed", "bf16-mixed", "16", "bf16")


def optimizer_of(
    config: Config, net: nn.Module, trainer: dict[str, Any]
) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return the function that makes the optimizer of a network from its parameters.

    Args:
        config: its `optimizer` and `finetune`.
        net: its encoder may have a learning rate of its own.
        trainer: settings of the trainer, resolved.

    Raises:
        CocosegError: the settings contradict each other, or the network has no encoder.
    """
    node, share = with_fused(config.optimizer, trainer), config.finetune.encoder_lr
    encoder = encoder_of(net) if config.finetune.frozen or share != 1 else None

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        groups = weight_decay_groups(node, parameters)
        if share != 1:
            groups = encoder_lr_groups(groups, encoder, share * node["lr"])
        return build(node, "optimizer", groups)

    return make


def with_fused(optimizer: Any, trainer: dict[str, Any]) -> Any:
    """Return the optimizer's node, with `fused` where torch has that and the user has not decided.

    Args:
        optimizer: `_target_` and arguments.
        trainer: settings of the trainer, resolved.

    Raises:
        CocosegError: the user asks for a fused step, and for clipping in mixed precision.
    """
    if not isinstance(optimizer, dict):
        return optimizer
    clips = trainer.get("gradient_clip_val") and str(trainer.get("precision")) in MIXED
    if clips and optimizer.get("fused"):
        raise CocosegError(
            "optimizer.fused=true: a fused step can't follow trainer.gradient_clip_val with "
            f"trainer.precision={trainer['precision']}; leave out optimizer.fused"
        )
    if clips or optimizer.get("_target_") not in FUSED or {"fused", "foreach"} & optimizer.keys():
        return optimizer
    has_fused = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda", "cpu")
    return {**optimizer, "fused": True} if has_fused else optimizer


def weight_decay_groups(optimizer: Any, parameters: Iterable[nn.Parameter]) -> list[Any]:
    """Return the parameters, in two groups where weights decay.

    Biases and the scales of norms don't decay: their size is no sign of overfitting.
    """
    parameters = list(parameters)
    if not isinstance(optimizer, dict) or not optimizer.get("weight_decay"):
        return parameters
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def require_same_groups(optimizer: Optimizer, state: dict[str, Any], where: str) -> None:
    """Refuse a saved state of an optimizer with other groups of parameters.

    Args:
        optimizer: the one to load the state.
        state: `Optimizer.state_dict()` of another one.
        where: file of the state.

    Raises:
        CocosegError: names the settings that make groups.
    """
    ours, theirs = (
        [len(g["params"]) for g in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    if ours != theirs:
        raise CocosegError(
            f"{where}: its optimizer has the weights in groups of {theirs}, and here they are {ours}; keep "
            "finetune.encoder_lr and optimizer.weight_decay as they were"
        )
