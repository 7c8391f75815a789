"""Model files and checkpoints of earlier versions, which hold what no longer exists."""

from collections.abc import Mapping
from typing import Any

# Names of networks in older files and configurations -> today's.
TARGETS = {
    "cocoseg.unet.UNet": "cocoseg.UNet",
    "cocoseg.residual.ResidualUNet": "cocoseg.ResidualUNet",
    "cocoseg.resnet_unet.ResNetUNet": "cocoseg.ResNetUNet",
}
AUX_HEADS = "aux_heads."  # names of weights of heads for deep supervision
NETWORK, AVERAGE = "net.", "average.net."  # names of weights in a checkpoint; the second ones with `ema` only
CALLBACKS = ("Advice", "Pictures")  # callbacks that had a state


def rename_target(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's `_target_` and arguments with today's name of the network."""
    name = network.get("_target_")
    return {**network, "_target_": TARGETS.get(name, name)} if isinstance(name, str) else dict(network)


def drop_callbacks(states: dict[str, Any]) -> None:
    """Drop the states of callbacks that are gone or renamed; Lightning would warn of them."""
    for name in CALLBACKS:
        states.pop(name, None)


def network_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """Pick the network's weights from a checkpoint's state dict: the averaged ones, if it holds any."""
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in weights) else NETWORK
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def drop_average(weights: dict[str, Any]) -> bool:
    """Drop the averaged weights from a checkpoint's state dict; returns whether there were any."""
    names = [name for name in weights if name.startswith(AVERAGE)]
    for name in names:
        del weights[name]
    return bool(names)


def drop_deep_supervision(
    network: dict[str, Any], weights: dict[str, Any], optimizer: dict[str, Any] | None = None
) -> bool:
    """Drop the argument `deep_supervision` of a residual U-Net, and the heads that only training used.

    Everything is changed in place.

    Args:
        network: `_target_` and arguments.
        weights: state dict of the network, or of a module that contains it.
        optimizer: `Optimizer.state_dict()` over the network's parameters.

    Returns:
        Whether there were such heads.
    """
    if rename_target(network).get("_target_") != "cocoseg.ResidualUNet" or not network.pop(
        "deep_supervision", False
    ):
        return False
    names = [name for name in weights if f".{AUX_HEADS}" in f".{name}"]
    for name in names:
        del weights[name]
    if optimizer is not None:
        _cut(optimizer, heads=len({name.partition(AUX_HEADS)[2] for name in names}) // 2)
    return True


def _cut(optimizer: dict[str, Any], heads: int) -> None:
    """Drop the weights and biases of the heads, which are the last ones of the network.

    With weight decay the first group holds weights and the second biases, else the first one holds both.
    """
    groups = optimizer["param_groups"]
    are_apart = len(groups) > 1 and groups[0].get("weight_decay") != groups[1].get("weight_decay")
    cuts = (heads, heads) if are_apart else (2 * heads,)
    kept: list[int] = []  # numbers of the parameters before
    for index, group in enumerate(groups):
        before, start = group["params"], len(kept)
        kept += before[: len(before) - cuts[index]] if index < len(cuts) else before
        group["params"] = list(range(start, len(kept)))
    state = optimizer["state"]
    optimizer["state"] = {new: state[old] for new, old in enumerate(kept) if old in state}
