"""The U-Net of Ronneberger et al. 2015 (arXiv 1505.04597), with padding, BatchNorm and any input size."""

import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.networks.blocks import EncoderDecoder, check_counts, check_rates, conv_block, keep_arguments


class UNet(EncoderDecoder):
    """Encoder and decoder of `depth` levels, joined by concatenated skips.

    `forward` maps image (B, 3, H, W) to logits (B, num_classes, H, W), of any height and width from 1 up.

    Args:
        num_classes: channels of the logits.
        base_channels: channels of the first level, doubled at each of the next.
        depth: how often the image is halved.
        upsample: `transpose` (a 2x2 transposed convolution of stride 2) or `bilinear` (followed by a 1x1
            convolution).
        dropout: probability with which whole channels of the deepest level are dropped in training.
        standardize: give each image mean 0 and deviation 1 in each channel first, against other light.

    Raises:
        ValueError: an argument out of range.
    """

    @keep_arguments
    def __init__(
        self,
        num_classes: int,
        base_channels: int = 64,
        depth: int = 4,
        upsample: str = "transpose",
        dropout: float = 0.0,
        standardize: bool = False,
    ):
        super().__init__()
        check_counts({"num_classes": num_classes, "base_channels": base_channels, "depth": depth})
        check_rates({"dropout": dropout})
        widths = [base_channels * 2**level for level in range(depth + 1)]
        self.multiple = 2**depth
        self.standardize = standardize
        self.stem = conv_block(3, widths[0], 2)
        self.down = nn.ModuleList(conv_block(width, 2 * width, 2) for width in widths[:-1])
        self.make_decoder(widths[::-1], widths[-2::-1], num_classes, upsample, dropout)

    def encode(self, image: Tensor) -> list[Tensor]:
        features = [self.stem(image)]
        for block in self.down:
            features.append(block(F.max_pool2d(features[-1], 2)))
        return features
