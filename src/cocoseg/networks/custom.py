"""Networks that a configuration names, custom ones included: their arguments, and a check of their output."""

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from cocoseg.config import conf_folder
from cocoseg.config_checks import parameters_of
from cocoseg.errors import CocosegError, reason_of
from cocoseg.files import read_yaml
from cocoseg.networks.device import is_out_of_memory, preserve_state
from cocoseg.networks.model_file import NETWORKS
from cocoseg.networks.old_files import rename_target

OF_TRAINING = ("weights", "weights_part")  # keys beside the arguments of built-in networks, see pretrained.py
CLASSES = ("num_classes", "classes")  # the argument for the number of classes: torchvision's name, and smp's


def is_built_in(model: Any) -> bool:
    """Tell whether the `model` settings name a built-in network."""
    return isinstance(model, Mapping) and rename_target(model).get("_target_") in NETWORKS


def arguments_of(model: Any, classes: int | None = None) -> dict[str, Any]:
    """Return `_target_` and arguments of a network from the `model` settings, without keys for training only.

    Args:
        classes: number of classes, added under the target's name for it; None only checks the others.

    Raises:
        CocosegError: the target can't be imported, or lacks an argument that is set or that for the classes.
    """
    if not isinstance(model, Mapping) or not isinstance(model.get("_target_"), str):
        raise CocosegError("model: no _target_ in it, the class or function to call")
    network = rename_target(model)
    name = network["_target_"]
    parameters = parameters_of(name, "model")
    # Keys of the default preset stand unchanged beside a custom network that was put in its place.
    for key, default in read_yaml(conf_folder() / "model" / "unet.yaml").items():
        is_left = network.get(key) == default or (is_built_in(model) and key in OF_TRAINING)
        if key not in (*parameters, "_target_") and is_left:
            network.pop(key, None)
    takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    argument = next((known for known in CLASSES if known in parameters), CLASSES[0] if takes_any else None)
    if argument is None:
        raise CocosegError(
            f"model: {name} has neither an argument num_classes nor classes; name a function that takes one "
            "and returns the network"
        )
    unknown = [key for key in network if key not in parameters and not key.startswith("_")]
    if unknown and not takes_any:
        listed, leave_out = (join.join(unknown) for join in (", model.", "' '~model."))
        close = get_close_matches(unknown[0], parameters, n=1)
        hint = f"did you mean model.{close[0]}? " if close else ""
        raise CocosegError(
            f"model.{listed}: {name} has no such argument; {hint}to leave out: '~model.{leave_out}'"
        )
    return network if classes is None else {**network, argument: classes}


def describe(net: nn.Module) -> dict[str, Any]:
    """Return `_target_` and arguments of a network as plain values; of a custom one its class alone."""
    names = {kind: name for name, kind in NETWORKS.items()}
    if type(net) in names:
        return {"_target_": names[type(net)], **msgspec.to_builtins(net.arguments)}
    return {"_target_": f"{type(net).__module__}.{type(net).__qualname__}"}


def try_network(net: nn.Module, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Call a network on blank images, in training and in evaluation mode, and check its output.

    Args:
        net: on the device that it will run on.
        name: for messages.
        shape: (images, height, width) of a batch.
        classes: channels of the logits.

    Raises:
        CocosegError: the network fails, or does not return what it must.
    """
    images, height, width = shape
    like = next(net.parameters())
    image = torch.zeros(images, 3, height, width, device=like.device, dtype=like.dtype)
    image = image.contiguous(memory_format=torch.channels_last)  # as batches are
    with torch.no_grad(), preserve_state(net):
        for training in (True, False):
            net.train(training)
            try:
                output = net(image)
            except Exception as error:  # custom code may raise anything
                if is_out_of_memory(error):
                    raise
                raise CocosegError(
                    f"model: {name} fails on images {tuple(image.shape)}: {reason_of(error)}"
                ) from error
            _require_logits(output, (images, classes, height, width), name)


def _require_logits(output: Any, shape: tuple[int, ...], name: str) -> None:
    is_mapping = isinstance(output, Mapping)
    if is_mapping and "aux" in output and not isinstance(output["aux"], Tensor):
        raise CocosegError(
            f"model: {name} returns `aux` that is no tensor; it must be further logits, or absent"
        )
    logits = output.get("out") if is_mapping else output
    is_tensor = isinstance(logits, Tensor)
    if not is_tensor or tuple(logits.shape) != shape or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} of {logits.dtype}" if is_tensor else f"a {type(output).__name__}"
        raise CocosegError(
            f"model: {name} returns {found}; it must return logits {shape}, images x classes x height x "
            "width, or a mapping with them as `out`"
        )
