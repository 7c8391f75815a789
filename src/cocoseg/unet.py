"""The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597), with padding, BatchNorm and any input size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.errors import CocosegError


class UNet(nn.Module):
    """Encoder and decoder of `depth` levels, joined by concatenated skips.

    `forward` maps image (B, 3, H, W) to logits (B, num_classes, H, W). Any height and width from 1 up works:
    the image is padded inside to multiples of 2^depth, and the logits are cropped back.

    Args:
        num_classes: channels of the logits.
        base_channels: channels of the first level, doubled at each of the next.
        depth: how often the image is halved.
        upsample: `transpose` (a 2x2 transposed convolution of stride 2) or `bilinear` (followed by a 1x1
            convolution).
        dropout: probability with which whole channels of the deepest level are dropped in training.

    Raises:
        ValueError: an argument out of range.
        CocosegError: in training, an input that leaves the deepest level a single value per channel, which
            BatchNorm can't normalise.
    """

    def __init__(
        self,
        num_classes: int,
        base_channels: int = 64,
        depth: int = 4,
        upsample: str = "transpose",
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value in (("num_classes", num_classes), ("base_channels", base_channels), ("depth", depth)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 up")
        if upsample not in ("transpose", "bilinear"):
            raise ValueError(f"upsample is {upsample!r}; it must be transpose or bilinear")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; it must lie in [0, 1)")
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.multiple = 2**depth
        self.stem = double_conv(3, widths[0])
        self.down = nn.ModuleList(double_conv(width, 2 * width) for width in widths[:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(Up(2 * width, upsample) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], num_classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self._pad(image)
        if self.training and x.shape[0] * (x.shape[2] // self.multiple) * (x.shape[3] // self.multiple) == 1:
            raise CocosegError(
                f"training on one image of {height}x{width} leaves the deepest level one value per channel: "
                "take a larger image_size or batch_size, or a smaller depth"
            )
        x = self.stem(x)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        x = self.dropout(x)
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)[..., :height, :width]

    def _pad(self, image: Tensor) -> Tensor:
        """Repeat the right and bottom border up to the next multiple of 2^depth."""
        height, width = image.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


class Up(nn.Module):
    """One level of the decoder: (B, C, H, W) and its skip (B, C/2, 2H, 2W) -> (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int, upsample: str):
        super().__init__()
        half = channels // 2
        if upsample == "transpose":
            self.grow: nn.Module = nn.ConvTranspose2d(channels, half, kernel_size=2, stride=2)
        else:
            self.grow = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(channels, half, kernel_size=1),
            )
        self.conv = double_conv(channels, half)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((skip, self.grow(x)), dim=1))


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with BatchNorm (hence no bias) and ReLU; the size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
