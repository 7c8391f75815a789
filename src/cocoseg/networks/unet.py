"""The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597), with padding, BatchNorm and any input size."""

import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.networks.blocks import (
    Up,
    check_counts,
    check_rates,
    check_upsample,
    convolved,
    padded,
    require_several_values,
)


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
        check_counts({"num_classes": num_classes, "base_channels": base_channels, "depth": depth})
        check_upsample(upsample)
        check_rates({"dropout": dropout})
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.multiple = 2**depth
        self.stem = convolved(3, widths[0], 2)
        self.down = nn.ModuleList(convolved(width, 2 * width, 2) for width in widths[:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(Up(2 * width, width, width, upsample) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], num_classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if self.training:
            require_several_values(image, self.multiple, ", or a smaller depth")
        x = self.stem(padded(image, self.multiple))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        x = self.dropout(x)
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)[..., :height, :width]
