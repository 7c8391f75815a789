"""A U-Net on one of torchvision's ResNets, which come with weights trained on ImageNet."""

from collections.abc import Sequence

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from cocoseg.networks.blocks import (
    Up,
    check_counts,
    check_rates,
    conv_block,
    pad_to_multiple,
)

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STRIDE = 32  # pixels of the image per pixel of the deepest level, along each side


class ResNetUNet(nn.Module):
    """A ResNet as encoder and a U-Net's decoder, with skips at strides 1, 2, 4, 8 and 16.

    The skip at stride 1 is a convolution of the image itself: the ResNet begins by halving it, and borders
    would be as blurred as that. `forward` maps image (B, 3, H, W) to logits (B, num_classes, H, W), of any
    height and width from 1 up: the image is padded inside to multiples of 32.

    Args:
        num_classes: channels of the logits.
        encoder: one of `ENCODERS`.
        decoder_channels: of the five levels of the decoder, the coarsest first.
        upsample: `transpose` (a 2x2 transposed convolution of stride 2) or `bilinear` (followed by a 1x1
            convolution).
        dropout: probability with which whole channels of the deepest level are dropped in training.

    Attributes:
        encoder: its parameters are named as torchvision's are.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet34",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        upsample: str = "transpose",
        dropout: float = 0.0,
    ):
        super().__init__()
        check_counts({"num_classes": num_classes})
        if encoder not in ENCODERS:
            raise ValueError(f"encoder is {encoder!r}; it must be one of {', '.join(ENCODERS)}")
        widths = list(decoder_channels)
        if len(widths) != 5:
            raise ValueError(
                f"decoder_channels is {widths}; it must be five numbers, the coarsest level first"
            )
        check_counts({f"decoder_channels[{i}]": width for i, width in enumerate(widths)})
        check_rates({"dropout": dropout})
        self.encoder = ResNetEncoder(encoder)
        self.stem = conv_block(3, widths[-1], 1)
        *skips, deepest = widths[-1], *self.encoder.widths
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            Up(inputs, skip, outputs, upsample)
            for inputs, skip, outputs in zip((deepest, *widths), reversed(skips), widths, strict=False)
        )
        self.head = nn.Conv2d(widths[-1], num_classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        image = pad_to_multiple(image, STRIDE)
        *skips, x = self.stem(image), *self.encoder(image)
        x = self.dropout(x)
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)[..., :height, :width]


class ResNetEncoder(nn.Module):
    """A ResNet of torchvision without its classifier: image (B, 3, H, W), H and W multiples of 32, ->
    features (B, widths[i], H/2^(i+1), W/2^(i+1)) of five levels.

    Attributes:
        widths: channels of the levels.
    """

    def __init__(self, name: str):
        super().__init__()
        resnet = torchvision.models.get_model(name, weights=None)
        self.conv1, self.bn1, self.maxpool = resnet.conv1, resnet.bn1, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        self.widths = 64, *(width * self.layer1[0].expansion for width in (64, 128, 256, 512))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        features = [x]
        x = self.maxpool(x)
        for level in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = level(x)
            features.append(x)
        return features
