"""What is exported to other formats: a trained network with what comes before it and after it."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from cocoseg import __version__
from cocoseg.export import SegmentationModel
from cocoseg.spec import MEAN, STD

USUAL_MULTIPLE = 32  # of a network of others that has no attribute `multiple`


class Deployed(nn.Module):
    """A network, with normalisation before it and arg-max after it where that is wanted.

    `forward` maps

    | `normalise` | image                                                                  |
    |-------------|------------------------------------------------------------------------|
    | true        | (B, H, W, 3) uint8 RGB, 0 to 255, as image libraries decode pictures     |
    | false       | (B, 3, H, W) float32, normalised with ImageNet's mean and deviation      |

    | `argmax`    | result                                                                  |
    |-------------|-------------------------------------------------------------------------|
    | true        | classes (B, H, W) uint8, the class index of each pixel                   |
    | false       | logits (B, C, H, W) float32                                              |

    Attributes:
        labels, image_size: of the model.
        multiple: heights and widths that are multiples of this need no padding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: SegmentationModel, *, normalise: bool = True, argmax: bool = True):
        super().__init__()
        self.model = model
        self.labels, self.image_size = model.labels, model.image_size
        self.multiple: int = getattr(model.net, "multiple", USUAL_MULTIPLE)
        self.normalise, self.argmax = normalise, argmax
        scale = torch.tensor([1 / (255 * std) for std in STD]).view(3, 1, 1)
        shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eval()

    @property
    def output(self) -> str:
        """The name of the result."""
        return "classes" if self.argmax else "logits"

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logits(image)
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32, whatever `argmax` is."""
        if self.normalise:
            image = image.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return self.model(image)

    def takes(self, height: int, width: int) -> bool:
        """Whether the network takes images of this size; those of others need not take every one."""
        try:
            self(self.example(1, height, width))
        except Exception:  # whatever a network of others may raise
            return False
        return True

    def example(self, batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
        """An image as `forward` takes it: noise, coarse and fine, for many classes to show."""
        generator = torch.Generator().manual_seed(seed)
        image = torch.zeros(batch, 3, height, width)
        for grain in (2, 8, 1 << 20):  # cells across the picture; at last its pixels
            noise = torch.rand(batch, 3, min(grain, height), min(grain, width), generator=generator)
            image += nn.functional.interpolate(noise, (height, width), mode="bilinear")
        pixels = (image / 3 * 255).round().to(torch.uint8)
        if self.normalise:
            return pixels.permute(0, 2, 3, 1).contiguous()
        return pixels.float() * self.scale + self.shift

    def dimensions(self, batch: Any, height: Any, width: Any) -> dict[int, Any]:
        """These three by their place in the image's shape."""
        rows = 1 if self.normalise else 2
        return {0: batch, rows: height, rows + 1: width}

    def metadata(self) -> dict[str, str]:
        """What goes into exported files, all as text: how to feed them and what their numbers mean."""
        return {
            "program": f"cocoseg {__version__}",
            "labels": json.dumps(self.labels.to_dict()),
            "image_size": json.dumps(list(self.image_size)),
            "multiple": json.dumps(self.multiple),
            "input": "(B, H, W, 3) uint8 RGB" if self.normalise else "(B, 3, H, W) float32, normalised",
            "output": "(B, H, W) uint8 class index" if self.argmax else "(B, C, H, W) float32 logits",
            "normalization": json.dumps({"mean": list(MEAN), "std": list(STD), "inside": self.normalise}),
        }
