"""Weights to begin with: those that belong to an encoder's name, or those of a file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cocoseg.config import DEFAULT_WEIGHTS
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.networks.custom import is_built_in
from cocoseg.networks.encoder_names import find_difference, pick_encoder
from cocoseg.networks.encoder_weights import default_weights, read_safetensors
from cocoseg.networks.encoders import make_encoder, require_any_size
from cocoseg.networks.model_file import interpret, read_file
from cocoseg.networks.old_files import AUX_HEADS

log = logging.getLogger(__name__)

HEAD, ENCODER, DECODER = "head.", "encoder.", "up."  # parts of built-in networks; the head gives the classes
# Licenses under which weights may be used commercially, as timm names them.
FREE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0")


@dataclass(frozen=True)
class Pretrained:
    """Weights, and which part of them to take.

    Attributes:
        source: where they come from, for messages.
        weights: by the names of the network that they were made for.
        part: `all`, `body` (all but the head), `encoder`.
        labels: labels that the head was trained on; None where they are not known.
        license: license of the weights, by timm's name; None where it is not known.
    """

    source: str
    weights: Mapping[str, Tensor]
    part: str = "all"
    labels: LabelMap | None = None
    license: str | None = None

    def is_encoder_alone(self) -> bool:
        """Tell whether they are of an encoder or a classifier, not of a network for segmentation."""
        return not any(name.startswith((ENCODER, DECODER)) for name in self.weights)

    def load_into(self, net: nn.Module, labels: LabelMap) -> None:
        """Put the weights into a built-in network for these labels, all of them or none.

        Weights of an encoder alone, perhaps with a classifier behind it, go into the network's encoder.

        Raises:
            CocosegError: they don't fit.
        """
        weights, target = self._chosen(net, labels)
        own = target.state_dict()
        optional = HEAD if self.part == "body" and target is net else ()
        wanted = {name: value for name, value in own.items() if not name.startswith(optional)}
        weights = {n: value for n, value in weights.items() if n in own or not n.startswith(AUX_HEADS)}
        if difference := find_difference(wanted, weights):
            raise _other_network(self.source, type(target).__name__, difference)
        target.load_state_dict(weights, strict=False)
        terms = f"; license {self.license}" if self.license else ""
        log.info("%s: %d tensors, into %s%s", self.source, len(weights), type(target).__name__, terms)
        if self.license is not None and self.license not in FREE:
            log.warning(
                "warning: %s: license %s of these weights, and so of the model, may not allow commercial use",
                self.source,
                self.license,
            )

    def _chosen(self, net: nn.Module, labels: LabelMap) -> tuple[dict[str, Tensor], nn.Module]:
        """The weights to load, and the module to load them into: the network or its encoder."""
        encoder = getattr(net, "encoder", None)
        if self.part == "encoder" and encoder is None:
            raise CocosegError(
                f"model.weights_part is encoder, but {type(net).__name__} has none of its own; "
                "body takes all but the head"
            )
        if encoder is not None and (self.part == "encoder" or self.is_encoder_alone()):
            part = {n.removeprefix(ENCODER): v for n, v in self.weights.items() if n.startswith(ENCODER)}
            return part or dict(self.weights), encoder
        if self.part == "body":
            return {n: value for n, value in self.weights.items() if not n.startswith(HEAD)}, net
        self._require_same_head(net, labels)
        return dict(self.weights), net

    def _require_same_head(self, net: nn.Module, labels: LabelMap) -> None:
        theirs, ours = self.weights.get("head.weight"), net.state_dict()["head.weight"]
        advice = "model.weights_part=body takes all but the head"
        if theirs is not None and len(theirs) != len(ours):
            raise CocosegError(
                f"{self.source}: its head has {len(theirs)} classes, these data have {len(ours)}; {advice}"
            )
        if self.labels is not None and (difference := self.labels.difference(labels)):
            log.warning("%s: its head was trained on other labels (%s); %s", self.source, difference, advice)


def read_pretrained(model: Any) -> Pretrained | None:
    """Read the weights that the `model` settings ask for, those of an encoder by its own names.

    Returns:
        None where it asks for none, or names a custom network, which takes care of its weights itself.

    Raises:
        CocosegError: they can't be had, or the encoder can't be used.
    """
    if not is_built_in(model):
        return None
    weights, part, name = model.get("weights"), model.get("weights_part", "all"), model.get("encoder")
    if "encoder" not in model:
        return None if weights is None else _from_file(weights, part)
    try:
        with torch.device("meta"):
            encoder = make_encoder(name)
            require_any_size(encoder, name)
    except ValueError as error:
        raise CocosegError(f"model.{error}") from error
    if weights is None:
        return None
    if weights == DEFAULT_WEIGHTS:
        source, state, license = default_weights(name)
        found = Pretrained(f"model.weights: {source}", state, part, license=license)
    else:
        found = _from_file(weights, part)
    if not found.is_encoder_alone():
        return found
    try:
        return replace(found, weights=pick_encoder(found.weights, encoder, name), part="encoder")
    except ValueError as error:
        raise _other_network(found.source, name, str(error)) from error


def _other_network(source: str, name: str, difference: str) -> CocosegError:
    return CocosegError(f"{source}: weights of another network than {name}: {difference}")


def _from_file(name: str, part: str) -> Pretrained:
    source = f"model.weights: {name}"
    try:
        content: Any = read_safetensors(name) if name.endswith(".safetensors") else read_file(name)
    except CocosegError as error:
        raise CocosegError(f"model.weights: {error}") from error
    if not isinstance(content, Mapping):
        content = {}
    if "spec" in content or {"network", "labels", "state_dict"} <= content.keys():
        ours = interpret(content, source)
        spec = ours["spec"]
        return Pretrained(source, ours["state_dict"], part, spec.labels, spec.license)
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content.get(key), Mapping) else content
    if not content or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in content.items()):
        raise CocosegError(f"{source}: neither a state dict nor a model file of this program")
    return Pretrained(source, {name.removeprefix("module."): value for name, value in content.items()}, part)
