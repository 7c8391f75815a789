"""A U-Net on any encoder of timm, which come with weights trained on ImageNet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cocoseg.networks.blocks import EncoderDecoder, check_counts, check_rates, conv_block, keep_arguments
from cocoseg.networks.encoders import features_of, make_encoder, statistics
from cocoseg.networks.spec import MEAN, STD


class TimmUNet(EncoderDecoder):
    """An encoder of timm and a U-Net's decoder, with a skip wherever there are features of a level's stride.

    `forward` maps image (B, 3, H, W) to logits (B, num_classes, H, W), of any height and width from 1 up.
    Images are normalized by ImageNet's statistics as for all networks; where the encoder was trained with
    others they are converted.

    Args:
        num_classes: channels of the logits.
        encoder: name in timm, see `make_encoder`.
        decoder_channels: channels of the decoder's levels, the coarsest first; each doubles the size. Where
            they are fewer than the encoder's halvings, the logits are enlarged at the end (bilinear).
        upsample: `transpose` (a 2x2 transposed convolution of stride 2) or `bilinear` (followed by a 1x1
            convolution).
        dropout, standardize: as of `UNet`.

    Attributes:
        encoder: its parameters have timm's names.

    Raises:
        ValueError: an argument out of range.
    """

    @keep_arguments
    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet34.ra4_e3600_r224_in1k",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        upsample: str = "transpose",
        dropout: float = 0.0,
        standardize: bool = False,
    ):
        super().__init__()
        check_counts({"num_classes": num_classes})
        check_rates({"dropout": dropout})
        self.encoder = make_encoder(encoder)
        info: Any = self.encoder.feature_info
        widths = dict(zip(info.reduction(), info.channels(), strict=True))
        self.multiple = max(widths)
        channels = list(decoder_channels)
        halvings = self.multiple.bit_length() - 1
        if not 1 <= len(channels) <= halvings:
            raise ValueError(
                f"decoder_channels is {channels}; {encoder} halves the size {halvings} times, so it must be "
                f"1 to {halvings} numbers, the coarsest level first"
            )
        check_counts({f"decoder_channels[{i}]": width for i, width in enumerate(channels)})
        self.standardize = standardize
        self.convert = _Convert(*statistics(encoder))
        self.stride = self.multiple >> len(channels)
        # Few encoders have features at full size. There the image gives the skip, so that borders stay sharp.
        self.stem = conv_block(3, channels[-1], 1) if self.stride == 1 and 1 not in widths else None
        if self.stem is not None:
            widths[1] = channels[-1]
        skips = [widths.get(self.multiple >> level, 0) for level in range(1, len(channels) + 1)]
        self.make_decoder([widths[self.multiple], *channels], skips, num_classes, upsample, dropout)

    def encode(self, image: Tensor) -> list[Tensor | None]:
        image = self.convert(image)
        features = features_of(self.encoder, image)
        if self.stem is not None:
            features[1] = self.stem(image)
        return [features.get(self.stride << level) for level in range(len(self.up) + 1)]


class _Convert(nn.Module):
    """Convert images (B, 3, H, W) from ImageNet's normalization to another one.

    The statistics travel with the weights, because a later version of timm may name others.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.is_needed = (tuple(mean), tuple(std)) != (MEAN, STD)
        if self.is_needed:
            ours, theirs = torch.tensor([MEAN, STD]), torch.tensor([tuple(mean), tuple(std)])
            self.register_buffer("scale", (ours[1] / theirs[1]).view(3, 1, 1))
            self.register_buffer("shift", ((ours[0] - theirs[0]) / theirs[1]).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.addcmul(self.shift, image, self.scale) if self.is_needed else image
