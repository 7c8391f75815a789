"""Weights to begin with: those that belong to an encoder's name, or those of a file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cocoseg.config import DEFAULT_WEIGHTS
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.networks.custom import is_own
from cocoseg.networks.encoder_weights import default_weights
from cocoseg.networks.encoders import make_encoder
from cocoseg.networks.model_file import interpret, read_file
from cocoseg.networks.old_files import AUX_HEADS

log = logging.getLogger(__name__)

HEAD = "head."  # the layer that gives the classes, in our own networks
# Licences under which weights may be used commercially, as timm names them.
FREE = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0")


@dataclass(frozen=True)
class Pretrained:
    """Weights, and which part of them to take.

    Attributes:
        source: where they come from, for messages.
        weights: by the names of the network that they were made for.
        part: `all`, `body` (all but the head), `encoder`.
        labels: that the head was trained on, or None where that is not known.
        license: of the weights, as timm names it, or None where it is not known.
    """

    source: str
    weights: Mapping[str, Tensor]
    part: str = "all"
    labels: LabelMap | None = None
    license: str | None = None

    def load_into(self, net: nn.Module, labels: LabelMap) -> None:
        """Put the weights into a network, each of them or none.

        Weights of an encoder alone, perhaps with a classifier behind it, go into the network's encoder.

        Args:
            net: one of our own.
            labels: of the data.

        Raises:
            CocosegError: they don't fit.
        """
        weights, target = self._chosen(net, labels)
        own = target.state_dict()
        may_miss = HEAD if self.part == "body" else ()
        weights = {n: value for n, value in weights.items() if n in own or not n.startswith(AUX_HEADS)}
        missing = [n for n in own if n not in weights and not n.startswith(may_miss)]
        self._require_fit(own, weights, missing, type(target).__name__)
        target.load_state_dict(weights, strict=False)
        terms = f"; licence {self.license}" if self.license else ""
        log.info("%s: %d tensors, into %s%s", self.source, len(weights), type(target).__name__, terms)
        if self.license is not None and self.license not in FREE:
            log.warning(
                "warning: %s: the licence of these weights (%s) restricts their use and that of the model",
                self.source,
                self.license,
            )

    def _chosen(self, net: nn.Module, labels: LabelMap) -> tuple[dict[str, Tensor], nn.Module]:
        """The weights that are wanted, and what they are of: the network, or its encoder."""
        encoder = getattr(net, "encoder", None)
        if self.part == "encoder" and encoder is None:
            raise CocosegError(
                f"model.weights_part is encoder, but {type(net).__name__} has none of its own; "
                "body takes all but the head"
            )
        alone = not any(name.startswith(("encoder.", "up.")) for name in self.weights)
        if encoder is not None and (self.part == "encoder" or alone):
            return _encoder_part(self.weights, encoder), encoder
        if self.part == "body":
            return _without(self.weights, (HEAD,)), net
        self._require_same_head(net, labels)
        return self.weights, net

    def _require_same_head(self, net: nn.Module, labels: LabelMap) -> None:
        theirs, ours = self.weights.get("head.weight"), net.state_dict()["head.weight"]
        advice = "model.weights_part=body takes all but the head"
        if theirs is not None and len(theirs) != len(ours):
            raise CocosegError(
                f"{self.source}: its head has {len(theirs)} classes, these data have {len(ours)}; {advice}"
            )
        if self.labels is not None and (difference := self.labels.difference(labels)):
            log.warning("%s: its head was trained on other labels (%s); %s", self.source, difference, advice)

    def _require_fit(
        self, own: Mapping[str, Tensor], weights: Mapping[str, Tensor], missing: list[str], kind: str
    ) -> None:
        # Files from before BatchNorm counted its batches are as good.
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        unknown = [name for name in weights if name not in own]
        others = [name for name in weights if name in own and weights[name].shape != own[name].shape]
        if not (missing or unknown or others):
            return
        if others:
            name = others[0]
            what = f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        elif missing:
            what = f"there is no {missing[0]} in it"
        else:
            what = f"its {unknown[0]} is unknown here"
        raise CocosegError(f"{self.source}: weights of another network than {kind}: {what}")


def read_pretrained(model: Any) -> Pretrained | None:
    """Read the weights that a model's node asks for.

    Returns:
        None where it asks for none, or names a custom network, which takes care of its weights itself.

    Raises:
        CocosegError: they can't be had.
    """
    if not is_own(model) or model.get("weights") is None:
        return None
    part = model.get("weights_part", "all")
    if model["weights"] != DEFAULT_WEIGHTS:
        return _from_file(model["weights"], part)
    name = model["encoder"]
    try:
        encoder = make_encoder(name)
    except ValueError as error:
        raise CocosegError(f"model.{error}") from error
    found = default_weights(name, encoder)
    return Pretrained(f"model.weights: {found.source}", found.state, part, license=found.license)


def _from_file(name: str, part: str) -> Pretrained:
    source = f"model.weights: {name}"
    try:
        content = _safetensors(name) if name.endswith(".safetensors") else read_file(name)
    except CocosegError as error:
        raise CocosegError(f"model.weights: {error}") from error
    if (isinstance(content, Mapping) and "spec" in content) or _is_model_file(content):
        ours = interpret(content, source)
        spec = ours["spec"]
        return Pretrained(source, ours["state_dict"], part, spec.labels, spec.license)
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            content = content[key] if isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not content or not all(map(_is_weight, content.items())):
        raise CocosegError(f"{source}: neither a state dict nor a model file of this program")
    return Pretrained(source, {name.removeprefix("module."): value for name, value in content.items()}, part)


def _is_model_file(content: Any) -> bool:
    return isinstance(content, Mapping) and {"network", "labels", "state_dict"} <= content.keys()


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _safetensors(name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(name)
    except (OSError, SafetensorError) as error:
        raise CocosegError(f"{name}: can't be read ({error})") from error


def _encoder_part(weights: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """Those of the encoder, by its own names, of a whole network's or of a classification network's.

    Layers that the encoder has nothing of belong to the classifier and are left out. timm's encoders call
    `stages_0` what the classification network calls `stages.0`.
    """
    of_whole = {
        name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")
    }
    own = encoder.state_dict()
    names = {_in_classifier(name): name for name in own}
    chosen = {names.get(name, name): value for name, value in (of_whole or weights).items()}
    layers = {name.partition(".")[0] for name in (*own, *names)}
    return {name: value for name, value in chosen.items() if name.partition(".")[0] in layers}


def _in_classifier(name: str) -> str:
    """Name that timm's classification network has for a weight of its encoder."""
    layer, dot, rest = name.partition(".")
    sequence, _, number = layer.rpartition("_")
    return f"{sequence}.{number}{dot}{rest}" if sequence and number.isdigit() else name


def _without(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}
