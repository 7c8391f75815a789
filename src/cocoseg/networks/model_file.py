"""Model files: `segmentation_model.pth`, and reading it or a checkpoint back. No Lightning, no Hydra."""

import inspect
import io
import logging
import pkgutil
import platform
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cocoseg.errors import CocosegError, first_line, reason_of
from cocoseg.files import write_bytes
from cocoseg.networks.old_files import drop_deep_supervision, network_weights
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.spec import FIELDS, ModelSpec
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.networks.unet import UNet
from cocoseg.networks.untrusted import require_harmless, require_plain, require_weights

log = logging.getLogger(__name__)

FORMAT = 1
# Networks that a model file may build by name. Names in files are looked up here and never imported. The
# keys stay as they are, wherever the classes move, because files hold them.
NETWORKS: dict[str, type[nn.Module]] = {
    "cocoseg.UNet": UNet,
    "cocoseg.ResidualUNet": ResidualUNet,
    "cocoseg.TimmUNet": TimmUNet,
}
# Arguments by which networks of torchvision, segmentation_models_pytorch and timm fetch weights.
WEIGHTS = ("weights", "weights_backbone", "encoder_weights", "pretrained")


def without_weights(
    network: Mapping[str, Any], kind: Callable[..., nn.Module] | None = None
) -> dict[str, Any]:
    """Return a network's arguments, None for those that fetch weights: other weights are loaded later.

    Args:
        network: its arguments, perhaps with `_target_`.
        kind: class or function that builds it; None for `_target_`. Many fetch weights by default.
    """
    try:
        known = set(inspect.signature(kind or pkgutil.resolve_name(network["_target_"])).parameters)
    except (ImportError, AttributeError, TypeError, ValueError, KeyError):
        known = set()
    return {**network, **{key: None for key in WEIGHTS if key in network or key in known}}


def read_file(path: str | Path, *, mmap: bool = False) -> Any:
    """Read a file that torch has saved, without unpickling anything but tensors and plain values.

    Raises:
        CocosegError: it is not there, or damaged, or would run code.
    """
    try:
        require_harmless(path)
        with warnings.catch_warnings():  # torch warns about odd pickles, and refuses them then
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CocosegError(f"{path}: no such file") from error
    except Exception as error:  # torch may raise anything on damaged bytes
        reason = "it is damaged or no torch file, or needs pickle, which would run code"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise CocosegError(f"{path}: not a model or checkpoint that can be loaded; {reason}") from error


def read_weights(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a model file or a checkpoint of this program.

    Args:
        mmap: read a tensor only when it is used.

    Returns:
        its content, with `spec` a ModelSpec, and `state_dict` by the network's own keys.

    Raises:
        CocosegError: it is not there, damaged, or of another program.
    """
    return interpret(read_file(path, mmap=mmap), path)


def interpret(content: Any, path: str | Path) -> dict[str, Any]:
    """Check the content of a file that torch has loaded; see `read_weights`."""
    if not isinstance(content, dict):
        raise CocosegError(f"{path}: not a model or checkpoint of this program (a {type(content).__name__})")
    written = content.get("format", FORMAT)
    if not isinstance(written, int) or written != FORMAT:
        is_short = isinstance(written, int) and abs(written) < 1000
        shown = written if is_short else f"a {type(written).__name__}"
        raise CocosegError(f"{path}: written by another version, in format {shown}, not {FORMAT}")
    try:
        is_checkpoint = "pytorch-lightning_version" in content
        described = content["spec"] if is_checkpoint else content
        if not isinstance(described, dict):
            raise CocosegError(f"spec is a {type(described).__name__}")
        require_plain([content["scores"], *({key: described[key]} for key in FIELDS if key in described)])
        spec = ModelSpec.from_dict(described)
        weights = content["state_dict"]
        require_weights(weights)
        if is_checkpoint:
            weights = network_weights(weights)
        if drop_deep_supervision(spec.network, weights):
            log.warning("%s: trained with deep_supervision, which is gone; its extra heads are ignored", path)
            content = {**content, "optimizer_states": []}
        return {**content, "spec": spec, "state_dict": weights, "scores": content["scores"]}
    except (KeyError, CocosegError) as error:
        raise CocosegError(f"{path}: not a model or checkpoint of this program ({error})") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that training can go on from; see `read_weights`.

    Raises:
        CocosegError: it can't be read, or holds no optimizer, as an exported model.
    """
    content = read_weights(path)
    if not {"pytorch-lightning_version", "optimizer_states", "epoch", "global_step"} <= content.keys():
        raise CocosegError(
            f"ckpt_path: {path} is an exported model, or was saved without its optimizer; training goes on "
            "from a whole .ckpt file"
        )
    return content


def load_network(
    path: str | Path, net: nn.Module | type[nn.Module] | str | None = None
) -> tuple[nn.Module, ModelSpec, dict[str, Any] | None]:
    """Build the network that a model file or a checkpoint describes and load its weights, on the CPU.

    Args:
        net: a custom network to fill, or its class, or the name of that, which is imported. A name in a file
            never is.

    Returns:
        the network; its spec; its validation scores, or None.

    Raises:
        CocosegError: the file can't be loaded, or names a network that must be passed as `net`.
    """
    content = read_weights(path)
    spec: ModelSpec = content["spec"]
    outputs = spec.network.get("num_classes", len(spec.labels))
    if outputs != len(spec.labels):
        raise CocosegError(f"{path}: damaged: {len(spec.labels)} labels for a network of {outputs} classes")
    weights = content["state_dict"]
    if not isinstance(net, nn.Module):
        if net is None:
            _require_fit(path, spec.network, weights)
        net = _build(path, spec.network, net)
    _fill(path, net, weights)
    return net, spec, content["scores"]


def _require_fit(path: str | Path, network: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a description of a network that is larger than the file, before memory is taken for it."""
    total = sum(value.numel() * value.element_size() for value in weights.values())
    if total > Path(path).stat().st_size:
        raise CocosegError(f"{path}: damaged: its weights would be larger than the file")
    with torch.device("meta"):
        net = _build(path, network, None)
    _fill(path, net, weights, assign=True)


def _fill(path: str | Path, net: nn.Module, weights: Mapping[str, Tensor], *, assign: bool = False) -> None:
    try:
        net.load_state_dict(weights, assign=assign)
    except Exception as error:  # a tensor may be of any kind
        raise CocosegError(f"{path}: the weights don't fit the network ({first_line(error)})") from error


def _build(path: str | Path, network: dict[str, Any], kind: type[nn.Module] | str | None) -> nn.Module:
    """Build a network by the arguments of a file: a built-in one, or of the class that is given or named."""
    name = network["_target_"]
    try:
        named = pkgutil.resolve_name(kind) if isinstance(kind, str) else kind
    except Exception as error:  # the module may raise anything
        raise CocosegError(f"network: no class {kind} ({reason_of(error)})") from error
    build: Callable[..., nn.Module] | None = named or NETWORKS.get(name)
    if build is None:
        raise CocosegError(
            f"{path}: holds weights of {name}; pass that class, or the network, as net= "
            f"(on a command line: network={name})"
        )
    arguments = without_weights(network, build)
    del arguments["_target_"]
    try:
        return build(**arguments)
    except Exception as error:  # the file's arguments may be anything
        raise CocosegError(f"{path}: {name} can't be built as the file says ({error})") from error


def save_model(
    path: Path, state_dict: Mapping[str, Tensor], spec: ModelSpec, scores: dict[str, Any] | None
) -> None:
    """Write `segmentation_model.pth`: plain values and CPU tensors that load with `weights_only=True`."""
    content = {
        "format": FORMAT,
        "state_dict": {key: tensor.detach().cpu().contiguous() for key, tensor in state_dict.items()},
        **spec.to_dict(),
        "scores": scores,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": version("torchvision"),  # importing it takes longer than torch
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
