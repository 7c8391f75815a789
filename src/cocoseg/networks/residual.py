"""A U-Net whose encoder is made of residual blocks, as in nnU-Net's ResEnc (arXiv 2404.09556)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.networks.blocks import EncoderDecoder, check_counts, check_rates, conv_block, keep_arguments


class ResidualUNet(EncoderDecoder):
    """A residual encoder and a plain, thinner decoder of `depth` levels, joined by concatenated skips.

    `forward` maps image (B, 3, H, W) to logits (B, num_classes, H, W), of any height and width from 1 up.

    Args:
        blocks: residual blocks at each level below the first, which has one after its stem.
        stochastic_depth: probability that the last block is left out in training, per image; that of earlier
            blocks is smaller, growing linearly (Huang et al. 2016, arXiv 1603.09382).
        num_classes, base_channels, depth, upsample, dropout, standardize, and errors: as of `UNet`.
    """

    @keep_arguments
    def __init__(
        self,
        num_classes: int,
        base_channels: int = 64,
        depth: int = 4,
        blocks: int = 2,
        stochastic_depth: float = 0.0,
        upsample: str = "transpose",
        dropout: float = 0.0,
        standardize: bool = False,
    ):
        super().__init__()
        counts = {"num_classes": num_classes, "base_channels": base_channels, "depth": depth}
        check_counts({**counts, "blocks": blocks})
        check_rates({"stochastic_depth": stochastic_depth, "dropout": dropout})
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.multiple = 2**depth
        self.standardize = standardize
        self.encoder = ResidualEncoder(widths, blocks, stochastic_depth)
        self.make_decoder(widths[::-1], widths[-2::-1], num_classes, upsample, dropout, convolutions=1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return self.encoder(image)


class ResidualEncoder(nn.Module):
    """Image (B, 3, H, W) -> features (B, widths[i], H/2^i, W/2^i) of every level."""

    def __init__(self, widths: list[int], blocks: int, stochastic_depth: float):
        super().__init__()
        total = 1 + blocks * (len(widths) - 1)
        rates = iter(stochastic_depth * i / total for i in range(1, total + 1))
        self.stem = conv_block(3, widths[0], 1)
        levels = [nn.Sequential(ResidualBlock(widths[0], widths[0], 1, next(rates)))]
        for inputs, outputs in pairwise(widths):
            first = ResidualBlock(inputs, outputs, 2, next(rates))
            others = [ResidualBlock(outputs, outputs, 1, next(rates)) for _ in range(blocks - 1)]
            levels.append(nn.Sequential(first, *others))
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


class ResidualBlock(nn.Module):
    """The basic block of He et al. 2016 (arXiv 1512.03385): relu(x + F(x)), F two 3x3 convolutions.

    Where it halves the size, the way around F takes the mean of 2x2 pixels, then a 1x1 convolution, so that
    no pixel is passed over (He et al. 2019, arXiv 1812.01187, ResNet-D).

    Args:
        inputs, outputs: channels.
        stride: 1, or 2 to halve the size, which must be even.
        drop: probability with which F is left out in training, per image.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.drop: nn.Module = nn.Identity()
        if drop:
            from torchvision.ops import StochasticDepth  # takes as long to import as torch

            self.drop = StochasticDepth(drop, "row")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride),
                nn.Conv2d(inputs, outputs, kernel_size=1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.drop(self.norm2(self.conv2(y)))
        return F.relu(y + self.shortcut(x), inplace=True)
