"""The module that is exported to other formats: normalization, a trained network, arg-max, resizes."""

import json
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg import __version__
from cocoseg.inference.model import SegmentationModel
from cocoseg.networks.spec import MEAN, STD

DEFAULT_MULTIPLE = 32  # assumed for custom networks without an attribute `multiple`
HALF = 0.5 + 2**-12  # a little more than 0.5, so that ties are rounded up, as torch rounds bytes
MEGAPIXELS = 12  # size of the photograph whose memory an export prints
EXAMPLES = ((1, 1, 2), (2, 3, 2), (3, 2, 1))  # batch size; height and width in units of `examples`


class Deployed(nn.Module):
    """A network with normalization before it and arg-max after it.

    `forward` maps images (B, H, W, 3) uint8 RGB, as image libraries decode files, to class indices (B, H, W)
    uint8.

    Args:
        model: the trained model.
        argmax: False gives logits (B, C, H, W) float32 instead.
        resize: resize images to the model's size and its output to theirs, as in `predict`.

    Attributes:
        multiple: heights and widths that are multiples of this need no padding.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: SegmentationModel, *, argmax: bool = True, resize: bool = False):
        super().__init__()
        self.model = model
        self.multiple: int = 1 if resize else getattr(model.net, "multiple", DEFAULT_MULTIPLE)
        self.argmax, self.resize = argmax, resize
        shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
        self.register_buffer("scale", torch.tensor([1 / (255 * std) for std in STD]).view(3, 1, 1))
        self.register_buffer("shift", shift)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logits(image)
        return logits.argmax(1).to(torch.uint8) if self.argmax else logits

    def logits(self, image: Tensor) -> Tensor:
        """Compute logits (B, C, H, W) float32 of images (B, H, W, 3) uint8, also with `argmax`."""
        pixels = image.permute(0, 3, 1, 2).float()
        if self.resize:  # as torch resizes bytes: first the columns, then the rows, each time rounded
            height, width = self.model.image_size
            for size in ((image.shape[1], width), (height, width)):
                pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).add(HALF).floor()
        logits: Tensor = self.model(pixels * self.scale + self.shift)
        return F.interpolate(logits, image.shape[1:3], mode="bilinear") if self.resize else logits

    def examples(self, *, less: int = 0) -> list[Tensor]:
        """Noise images (B, H, W, 3) uint8 of three sizes, to check a file with.

        Heights and widths are multiples of a unit of at least 64 pixels and twice `multiple`, minus `less`.
        """
        unit = max(2, math.ceil(64 / self.multiple)) * self.multiple
        shapes = [(batch, rows * unit - less, columns * unit - less, 3) for batch, rows, columns in EXAMPLES]
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]

    def metadata(self) -> dict[str, str]:
        """Metadata of exported files, as text: labels, input, output, normalization."""
        return {
            "program": f"cocoseg {__version__}",
            "labels": json.dumps(self.model.labels.to_dict()),
            "image_size": json.dumps(list(self.model.image_size)),
            "multiple": json.dumps(self.multiple),
            "input": "(B, H, W, 3) uint8 RGB",
            "license": json.dumps(self.model.license),
            "exif": json.dumps(self.model.exif),
            "bits": json.dumps(self.model.bits),
            "resize": json.dumps(self.resize),
            "output": "(B, H, W) uint8 class index" if self.argmax else "(B, C, H, W) float32 logits",
            "normalization": json.dumps({"mean": list(MEAN), "std": list(STD), "inside": True}),
        }

    def memory(self) -> str:
        """Describe the memory of the resizes, at the size of training and for a photograph."""
        # As measured: all enlarged logits at once, and class indices, which are int64 before they are uint8.
        # Enlarging one class at a time takes twice as much, since onnxruntime keeps all results.
        bytes_of_pixel = 4 * len(self.model.labels) + 24
        height, width = self.model.image_size
        sizes = {f"{height}x{width}": height * width, f"{MEGAPIXELS} megapixels": MEGAPIXELS * 1e6}
        texts = [f"{pixels * bytes_of_pixel / 1e6:,.0f} MB at {size}" for size, pixels in sizes.items()]
        return f"resizes inside take {' and '.join(texts)}, beside the network"
