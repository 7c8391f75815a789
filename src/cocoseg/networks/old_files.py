"""Model files and checkpoints of earlier versions, which hold what no longer exists."""

import re
from collections.abc import Mapping
from typing import Any

# Modules of networks in older files and configurations: cocoseg.unet.UNet is cocoseg.UNet now. Torchvision's
# ResNets have the same names of weights in timm.
OLD_MODULES = re.compile(r"^cocoseg\.(unet|residual|resnet_unet)\.")
OLD_NETWORKS = {"cocoseg.ResNetUNet": "cocoseg.TimmUNet"}
AUX_HEADS = "aux_heads."  # names of weights of heads for deep supervision
NETWORK, AVERAGE = "net.", "average.net."  # names of weights in a checkpoint; the second ones with `ema` only


def rename_target(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's `_target_` and arguments with today's name of the network."""
    name = OLD_MODULES.sub("cocoseg.", str(network.get("_target_")))
    return {**network, "_target_": OLD_NETWORKS.get(name, name)}


def network_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the network's weights from a checkpoint's state dict: the averaged ones, if it holds any."""
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in weights) else NETWORK
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def drop_average(weights: dict[str, Any]) -> bool:
    """Drop the averaged weights from a checkpoint's state dict; returns whether there were any."""
    names = [name for name in weights if name.startswith(AVERAGE)]
    for name in names:
        del weights[name]
    return bool(names)


def drop_deep_supervision(network: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Drop the argument `deep_supervision` of a residual U-Net, and the heads that only training used.

    Args:
        network: `_target_` and arguments, changed in place.
        weights: state dict of the network, or of a module that contains it, changed in place.

    Returns:
        Whether there were such heads.
    """
    if rename_target(network)["_target_"] != "cocoseg.ResidualUNet":
        return False
    has_heads = network.pop("deep_supervision", False)
    for name in [name for name in weights if f".{AUX_HEADS}" in f".{name}"]:
        del weights[name]
    return has_heads
