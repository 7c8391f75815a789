"""Renaming of the weights of classification networks to the names in timm's encoders."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def pick_encoder(weights: Mapping[str, Tensor], encoder: nn.Module, name: str) -> dict[str, Tensor]:
    """Pick an encoder's weights from those of a whole classification network.

    timm's own loader would leave random weights wherever names differ, without a message.

    Args:
        weights: by the names of the encoder, of timm's classification network, or by others that timm's own
            loader knows, as those of the program that a network was first trained with.
        encoder: as from `make_encoder`, on any device.
        name: name of the encoder in timm.

    Returns:
        every weight of the encoder, by its names.

    Raises:
        ValueError: they belong to another network; the message says how they differ.
    """
    picked, difference = _pick(weights, encoder, name)
    if difference is not None and (renamed := _renamed_by_timm(weights, name)) is not None:
        picked, difference = _pick(renamed, encoder, name)
    if difference is not None:
        raise ValueError(difference)
    return picked


def find_difference(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """Say how weights differ in names and shapes from a network's `own`, or return None if they do not."""
    for name, value in weights.items():
        if name in own and value.shape != own[name].shape:
            return f"{name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here"
    for name in own:
        # Files of old versions of torch lack this counter of BatchNorm, which no result depends on.
        if name not in weights and not name.endswith("num_batches_tracked"):
            return f"there is no {name} in it"
    return next((f"its {name} is unknown here" for name in weights if name not in own), None)


def _pick(
    weights: Mapping[str, Tensor], encoder: nn.Module, name: str
) -> tuple[dict[str, Tensor], str | None]:
    """Rename weights to the encoder's names. Returns them, and their difference from the encoder's, or None.

    Weights that only the classification network has are left out, and so is a classifier of any name.
    """
    import timm

    own = encoder.state_dict()
    names = {_canonical(key): key for key in own}
    picked = {names.get(_canonical(key), key): value for key, value in weights.items()}
    with torch.device("meta"):
        whole = {_canonical(key) for key in timm.create_model(name).state_dict()}
    layers = {key.partition(".")[0] for key in (*whole, *names)}
    rest = [key for key in picked if key not in own]
    for key in rest:
        if _canonical(key) in whole or _canonical(key).partition(".")[0] not in layers:
            del picked[key]
    return picked, find_difference(own, picked)


def _canonical(name: str) -> str:
    """Undo timm's changes to names in encoders: `stages_0` for `stages.0`, `model.` or `body.` in front."""
    return name.replace("_", ".").removeprefix("model.").removeprefix("body.")


def _renamed_by_timm(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor] | None:
    """Weights by the names of timm's classification network, from a file that its own loader can read."""
    import timm

    logging.getLogger("timm").setLevel(logging.ERROR)  # names that differ are reported here
    try:
        first, second = (
            timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(weights)}
            ).state_dict()
            for _ in range(2)
        )
    except Exception:  # names or shapes differ, or the code that renames expects others
        return None
    # timm loads a few networks without a check. What the file lacks is random then, and differs.
    is_whole = all(torch.equal(value, second[key]) for key, value in first.items())
    return first if is_whole else None
