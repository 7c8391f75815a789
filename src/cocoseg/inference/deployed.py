"""The module that other formats are exported from: normalization, a trained network, arg-max."""

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from cocoseg import __version__
from cocoseg.inference.model import SegmentationModel
from cocoseg.networks.spec import MEAN, STD

DEFAULT_MULTIPLE = 32  # assumed for custom networks without an attribute `multiple`


class Deployed(nn.Module):
    """A network with normalization before it and arg-max after it, each optional.

    Args:
        model: the trained model.
        normalise: True takes images (B, H, W, 3) uint8 RGB, as image libraries decode files; False takes
            (B, 3, H, W) float32, normalized with ImageNet's mean and standard deviation.
        argmax: True gives class indices (B, H, W) uint8; False gives logits (B, C, H, W) float32.

    Attributes:
        multiple: heights and widths that are multiples of this need no padding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: SegmentationModel, *, normalise: bool = True, argmax: bool = True):
        super().__init__()
        self.model = model
        self.multiple: int = getattr(model.net, "multiple", DEFAULT_MULTIPLE)
        self.normalise, self.argmax = normalise, argmax
        scale = torch.tensor([1 / (255 * std) for std in STD]).view(3, 1, 1)
        shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logits(image)
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32, whatever `argmax` is."""
        if self.normalise:
            image = image.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return self.model(image)

    def example(self, batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
        """Noise as an input for `forward`."""
        generator = torch.Generator().manual_seed(seed)
        if self.normalise:
            return torch.randint(256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
        return torch.randn(batch, 3, height, width, generator=generator)

    def sizes(self, step: int) -> list[tuple[int, int, int]]:
        """Batch, height and width of three inputs to check a file with; the first fits the training.

        Args:
            step: sides are multiples of this, from two of them up.
        """
        odd = (77, 101)  # networks must pad these
        sides = (self.model.image_size, odd, (7 * self.multiple, 3 * self.multiple))
        rounded = [[max(2, math.ceil(side / step)) * step for side in pair] for pair in sides]
        return [(batch, *pair) for batch, pair in zip((1, 3, 2), rounded, strict=True)]

    def dimensions(self, batch: Any, height: Any, width: Any) -> dict[int, Any]:
        """Names or symbols of the variable dimensions, by their index in the input's shape."""
        rows = 1 if self.normalise else 2
        return {0: batch, rows: height, rows + 1: width}

    def metadata(self) -> dict[str, str]:
        """Metadata of exported files, as text: labels, input, output, normalization."""
        return {
            "program": f"cocoseg {__version__}",
            "labels": json.dumps(self.model.labels.to_dict()),
            "image_size": json.dumps(list(self.model.image_size)),
            "multiple": json.dumps(self.multiple),
            "input": "(B, H, W, 3) uint8 RGB" if self.normalise else "(B, 3, H, W) float32, normalised",
            "output": "(B, H, W) uint8 class index" if self.argmax else "(B, C, H, W) float32 logits",
            "normalization": json.dumps({"mean": list(MEAN), "std": list(STD), "inside": self.normalise}),
        }
