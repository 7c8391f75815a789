"""Parts of the built-in networks, and the checks of arguments that they share."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the variance of a normalized image. Without it, faint noise, as in fog, would get deviation 1.
LEAST_VARIANCE = 1e-3


def keep_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Decorate a network's `__init__` to keep its arguments by name in `net.arguments`, for model files."""

    @functools.wraps(init)
    def wrapper(net: Any, *positional: Any, **named: Any) -> None:
        init(net, *positional, **named)
        given = inspect.signature(init).bind(net, *positional, **named)
        given.apply_defaults()
        net.arguments = {name: value for name, value in given.arguments.items() if name != "self"}

    return wrapper


class Up(nn.Module):
    """One level of a decoder: x (B, inputs, H, W), skip (B, skip, 2H, 2W) -> (B, outputs, 2H, 2W).

    Args:
        inputs, skip, outputs: channels; `skip` is 0 at a level without a skip.
        upsample: as of `UNet`.
        convolutions: number of 3x3 convolutions after the two are joined.
    """

    def __init__(self, inputs: int, skip: int, outputs: int, upsample: str, convolutions: int = 2):
        super().__init__()
        if upsample == "transpose":
            self.grow: nn.Module = nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)
        elif upsample == "bilinear":
            self.grow = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(inputs, outputs, kernel_size=1),
            )
        else:
            raise ValueError(f"upsample is {upsample!r}; it must be transpose or bilinear")
        self.conv = conv_block(skip + outputs, outputs, convolutions)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.grow(x)
        return self.conv(x if skip is None else torch.cat((skip, x), dim=1))


class EncoderDecoder(nn.Module):
    """Base of the U-Nets: image (B, 3, H, W) -> logits (B, num_classes, H, W).

    Any height and width from 1 up works: the image is padded inside to multiples of `multiple`, and the
    logits are cropped back. Subclasses make the encoder, then the decoder by `make_decoder`.

    Attributes:
        multiple: pixels of the image per pixel of the deepest level, along each side.
        stride: pixels of the image per pixel of the decoder's output; logits are enlarged by it (bilinear).
        standardize: images pass through `standardize` first.
    """

    multiple: int
    stride = 1
    standardize: bool

    def make_decoder(
        self,
        widths: Sequence[int],
        skips: Sequence[int],
        num_classes: int,
        upsample: str,
        dropout: float,
        convolutions: int = 2,
    ) -> None:
        """Make the layers after the encoder.

        Args:
            widths: channels of the encoder's deepest level, then of each level of the decoder.
            skips: channels of the encoder's features at each level of the decoder; 0 where it has none.
            num_classes, upsample, dropout: as of `UNet`.
            convolutions: as of `Up`.
        """
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            Up(inputs, skip, outputs, upsample, convolutions)
            for (inputs, outputs), skip in zip(pairwise(widths), skips, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, kernel_size=1)

    def encode(self, image: Tensor) -> Sequence[Tensor | None]:
        """Features from fine to coarse, each of half the size of the one before; None at a level without."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if self.standardize:
            image = standardize(image)
        features = list(self.encode(pad_to_multiple(image, self.multiple)))
        x = self.dropout(features.pop())
        for block in self.up:
            x = block(x, features.pop())
        logits = self.head(x)
        if self.stride > 1:
            logits = F.interpolate(logits, scale_factor=float(self.stride), mode="bilinear")
        return logits[..., :height, :width]


def conv_block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """Build `count` 3x3 convolutions, each with BatchNorm (hence no bias) and ReLU; height and width stay."""
    layers: list[nn.Module] = []
    for channels in (inputs, *[outputs] * (count - 1)):
        layers += [
            nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def standardize(image: Tensor) -> Tensor:
    """Give each image (B, 3, H, W) mean 0 and standard deviation about 1 in each channel."""
    variance, mean = torch.var_mean(image, (2, 3), correction=0, keepdim=True)
    return (image - mean) * torch.rsqrt(variance + LEAST_VARIANCE)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the right and bottom border of (B, C, H, W) up to the next multiples."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


# Far beyond what is of use, so that a model file can't name a network that takes hours to build.
MOST = {"depth": 16, "blocks": 256}
MOST_CHANNELS = 2**16


def check_counts(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the argument, unless all are whole numbers from 1 to the limits above."""
    for name, value in arguments.items():
        most = MOST.get(name, MOST_CHANNELS)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")


def check_rates(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError, which names the argument, unless all are probabilities below 1."""
    for name, value in arguments.items():
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise ValueError(f"{name} is {value!r}; it must lie in [0, 1)")
