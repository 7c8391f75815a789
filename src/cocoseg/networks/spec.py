"""Description of a network in checkpoints and model files, in plain values only."""

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, Self

import msgspec

from cocoseg.config import FULL_BITS, Bits
from cocoseg.errors import CocosegError, printable
from cocoseg.labels import LabelMap
from cocoseg.networks.old_files import rename_target

# Per channel, of images scaled to 0..1; the statistics of ImageNet, as all of torchvision uses them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Side = Annotated[int, msgspec.Meta(ge=1, le=2**14)]


@dataclass(frozen=True)
class ModelSpec:
    """Description of a network and its logits.

    Attributes:
        network: `_target_` and arguments, `num_classes` among them.
        labels: the classes, in the order of the logits' channels.
        image_size: (height, width) in pixels that it was trained at.
        license: license of the weights that its training began with, by timm's name; None without weights.
        exif: apply if training images were turned by an EXIF rotation, ignore if not; None if none had one.
        bits: bits of the training images, if they had more than 8 and were scaled; None if none had.
    """

    network: dict[str, Any]
    labels: LabelMap
    image_size: tuple[Side, Side]
    license: str | None = None
    exif: Literal["apply", "ignore"] | None = None
    bits: Bits | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "labels": self.labels.to_dict(),
            "image_size": list(self.image_size),
            "normalization": {"mean": list(MEAN), "std": list(STD)},
            "license": self.license,
            "exif": self.exif,
            "bits": self.bits,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Invert `to_dict`.

        Raises:
            CocosegError: values are missing or of other types.
        """
        try:
            spec = msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise CocosegError(str(error)) from error
        license = spec.license and printable(spec.license)
        return replace(spec, network=rename_target(spec.network), license=license)

    def require_same(self, found: "ModelSpec", where: str) -> None:
        """Refuse weights of another network, for other labels or for pixels that were scaled otherwise.

        Args:
            found: description in the file of the weights.
            where: name of that file, for the message.

        Raises:
            CocosegError: they differ; the message names both values.
        """
        if difference := found.labels.difference(self.labels):
            raise CocosegError(f"{where}: trained on other labels than these data's: {difference}")
        if self.bits is not None and (found.bits or FULL_BITS) != self.bits:
            raise CocosegError(
                f"{where}: trained on pixels of {found.bits or FULL_BITS} bits, these are of {self.bits}; "
                f"set data.bits={found.bits or FULL_BITS}"
            )
        parameters = inspect.signature(pkgutil.resolve_name(self.network["_target_"])).parameters
        # An earlier version may have had fewer arguments.
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        for key in sorted(found.network.keys() | self.network.keys()):
            theirs, ours = (network.get(key, defaults.get(key)) for network in (found.network, self.network))
            if theirs != ours:
                raise CocosegError(
                    f"{where}: another network: model.{key} is {theirs!r} there and {ours!r} here"
                )


FIELDS = frozenset(field.name for field in fields(ModelSpec))
