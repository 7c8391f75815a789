"""Weights to begin with: an encoder's, as torchvision offers them, or those of a file."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision
from torch import Tensor, nn

from cocoseg.config import IMAGENET
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.networks.custom import is_own
from cocoseg.networks.model_file import interpret, read_file
from cocoseg.networks.old_files import AUX_HEADS

log = logging.getLogger(__name__)

HEAD = "head."  # the layer that gives the classes, in our own networks
TIMEOUT = 30.0  # seconds without a byte, after which a download is given up


@dataclass(frozen=True)
class Pretrained:
    """Weights, and which part of them to take.

    Attributes:
        source: where they come from, for messages.
        weights: by the names of the network that they were made for.
        part: `all`, `body` (all but the head), `encoder`.
        labels: that the head was trained on, or None where that is not known.
    """

    source: str
    weights: dict[str, Tensor]
    part: str = "all"
    labels: LabelMap | None = None

    def load_into(self, net: nn.Module, labels: LabelMap) -> None:
        """Put the weights into a network, each of them or none.

        Weights of an encoder alone, as torchvision's ResNets are, go into the network's encoder.

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
        log.info("%s: %d tensors, into %s", self.source, len(weights), type(target).__name__)

    def _chosen(self, net: nn.Module, labels: LabelMap) -> tuple[dict[str, Tensor], nn.Module]:
        """The weights that are wanted, and what they are of: the network, or its encoder."""
        encoder = getattr(net, "encoder", None)
        if self.part == "encoder" and encoder is None:
            raise CocosegError(
                f"model.weights_part is encoder, but {type(net).__name__} has none of its own; "
                "body takes all but the head"
            )
        alone = not any(name.startswith(("encoder.", HEAD)) for name in self.weights)
        if encoder is not None and (self.part == "encoder" or alone):
            return _encoder_part(self.weights), encoder
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
    """The weights that a model's node asks for, fetched or read; None where it asks for none, or names a
    network of others, which takes care of its weights itself.

    Raises:
        CocosegError: they can't be had.
    """
    if not is_own(model) or model.get("weights") is None:
        return None
    name, part = model["weights"], model.get("weights_part", "all")
    if name in IMAGENET:
        return Pretrained(f"model.weights={name}", _fetched(model["encoder"], name), part)
    return _from_file(name, part)


def _fetched(encoder: str, name: str) -> dict[str, Tensor]:
    """The weights of one of torchvision's classification networks, by torchvision's own loader."""
    weights = torchvision.models.get_model_weights(encoder)[name]
    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(urlsplit(weights.url).path).name)
    was_there = path.exists()
    try:
        with _impatient():
            return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # the network, the disk or damaged bytes may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if was_there:
            raise CocosegError(
                f"model.weights: {path} can't be loaded ({reason[:200]}); delete it"
            ) from error
        raise CocosegError(
            f"model.weights: {weights.url} can't be fetched ({reason}); put that file at {path}, or set "
            "model.weights=null to begin with random weights"
        ) from error


def _from_file(name: str, part: str) -> Pretrained:
    source = f"model.weights: {name}"
    try:
        content = read_file(name)
    except CocosegError as error:
        raise CocosegError(f"model.weights: {error}") from error
    if (isinstance(content, Mapping) and "spec" in content) or _is_model_file(content):
        ours = interpret(content, source)
        return Pretrained(source, ours["state_dict"], part, ours["spec"].labels)
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


def _encoder_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the encoder, by its own names, of a whole network's or of a classification network's."""
    of_whole = {
        name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")
    }
    return _without(of_whole or weights, ("fc.",))


def _without(weights: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(prefixes)}


@contextmanager
def _impatient() -> Iterator[None]:
    """Connections that don't answer are given up: torch would wait for them forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
