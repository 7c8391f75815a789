"""Encoders by the names of the library timm, which is imported where it is used: that takes a second."""

from difflib import get_close_matches

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (1, 2, 4, 8, 16, 32)


def make_encoder(name: str) -> nn.Module:
    """Build an encoder with random weights; `features_of` calls it.

    Args:
        name: of a network in timm whose features have strides that double, with or without the name of its
            weights after a dot: `resnet34.ra4_e3600_r224_in1k`.

    Raises:
        ValueError: timm can't build it, or its features have other strides.
    """
    import timm

    try:
        encoder = timm.create_model(name, features_only=True)
    except Exception as error:  # of a misspelt name, or of a network that gives no features
        close = get_close_matches(str(name), timm.list_models(pretrained=True), n=1)
        hint = f"did you mean {close[0]}?" if close else "timm.list_models(pretrained=True) lists all names"
        raise ValueError(f"encoder is {name!r}, which timm can't build ({error}); {hint}") from error
    strides = encoder.feature_info.reduction()
    if any(stride not in STRIDES for stride in strides) or len(set(strides)) < len(strides):
        raise ValueError(
            f"encoder is {name!r}, whose features have the strides {strides}; they must double from one to "
            "the next, as those of resnet34, convnext_tiny or tf_efficientnet_lite0 do"
        )
    _pad_statically(encoder)
    return encoder


def features_of(encoder: nn.Module, image: Tensor) -> dict[int, Tensor]:
    """Compute features (B, C, H/stride, W/stride) by their strides, in ascending order.

    Args:
        encoder: as from `make_encoder`.
        image: (B, 3, H, W), H and W multiples of the largest stride.
    """
    features = encoder(image)
    if "NHWC" in str(getattr(encoder, "output_fmt", "")):
        features = [feature.permute(0, 3, 1, 2) for feature in features]
    return dict(zip(encoder.feature_info.reduction(), features, strict=True))


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, in 0..1, of the images that the weights were trained on."""
    import timm

    config = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


class StridedSame(nn.Conv2d):
    """TensorFlow's SAME convolution of stride 2 for even heights and widths.

    Its padding is then constant: k - 2 pixels, the smaller half left and top. timm computes it from the
    size at each call, which ONNX files with variable sizes hold as a slow graph of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before = total // 2
        x = F.pad(x, (before, total - before) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_statically(encoder: nn.Module) -> None:
    """Replace timm's convolutions with padding by size, which are square and of stride 2."""
    from timm.layers import Conv2dSame

    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is Conv2dSame and layer.stride == (2, 2) and layer.dilation == (1, 1):
                static = StridedSame(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,
                    layer.stride,
                    groups=layer.groups,
                    bias=layer.bias is not None,
                )
                static.load_state_dict(layer.state_dict())
                setattr(parent, name, static)
