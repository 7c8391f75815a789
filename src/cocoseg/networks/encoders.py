"""Encoders by the names of the library timm, which is imported where it is used: that takes a second."""

import re
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.errors import reason_of

STRIDES = (1, 2, 4, 8, 16, 32)  # pixels of the image per pixel of the features that decoders can use
PROBE = (64, 96)  # height and width in pixels at which an encoder is tried out


def make_encoder(name: str) -> nn.Module:
    """Build an encoder with random weights; `features_of` calls it.

    Args:
        name: name in timm of a network whose features have strides that double, with or without the name of
            its weights after a dot: `resnet34.ra4_e3600_r224_in1k`.

    Raises:
        ValueError: timm can't build it, or its features have other strides.
    """
    import timm

    if not re.fullmatch(r"[\w.-]+", str(name)):
        # timm would fetch what `hf-hub:` names, and a model file may name anything.
        raise ValueError(f"encoder is {name!r}; it must be the name of a network in timm")
    try:
        encoder = _create(name)
    except Exception as error:  # the name is misspelt, or the network gives no features
        with_tag = "." in str(name)
        known = timm.list_models(pretrained=with_tag, include_tags=with_tag)
        close = get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]}?" if close else "timm.list_models(pretrained=True) lists all names"
        raise ValueError(f"encoder is {name!r}, which timm can't build ({error}); {hint}") from error
    if timm.get_pretrained_cfg(name) is None:
        raise ValueError(
            f"encoder is {name!r}, an old name in timm; timm.list_models(pretrained=True) lists today's"
        )
    strides = strides_of(encoder)
    if any(stride not in STRIDES for stride in strides) or len(set(strides)) < len(strides):
        raise ValueError(
            f"encoder is {name!r}, whose features have the strides {strides}; they must double from one to "
            "the next, as those of resnet34, convnext_tiny or tf_efficientnet_lite0 do"
        )
    _replace_convolutions(encoder)
    return encoder


def require_any_size(encoder: nn.Module, name: str) -> None:
    """Try an encoder out on a blank image, and check the sizes of its features.

    Args:
        encoder: as from `make_encoder`; on the meta device this takes no time.

    Raises:
        ValueError: it takes images of one size only, or its features are smaller than their strides say.
    """
    encoder.eval()
    height, width = PROBE
    try:
        with torch.no_grad():
            features = features_of(encoder, next(encoder.parameters()).new_zeros(1, 3, height, width))
        fits = all(value.shape[2:] == (height // n, width // n) for n, value in features.items())
        reason = "its features have other sizes than their strides say"
    except Exception as error:  # timm's networks raise what they like
        fits, reason = False, reason_of(error)[:200]
    if not fits:
        raise ValueError(
            f"encoder is {name!r}, which does not take images of any size: of {height}x{width}, {reason}; "
            "resnet34, convnext_tiny or tf_efficientnet_lite0 do"
        )


def features_of(encoder: nn.Module, image: Tensor) -> dict[int, Tensor]:
    """Compute features (B, C, H/stride, W/stride) by their strides, in ascending order.

    Args:
        encoder: as from `make_encoder`.
        image: (B, 3, H, W), H and W multiples of the largest stride.
    """
    features = encoder(image)
    if "NHWC" in str(getattr(encoder, "output_fmt", "")):
        features = [feature.permute(0, 3, 1, 2) for feature in features]
    return dict(zip(strides_of(encoder), features, strict=True))


def strides_of(encoder: nn.Module) -> list[int]:
    """Strides of an encoder's features, in ascending order."""
    info: Any = encoder.feature_info  # timm's
    return info.reduction()


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, in 0..1, of the images that the weights were trained on."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


class TrainedInFloat32(nn.Conv2d):
    """Convolution that computes in float32 under autocast on a CPU while it is trained, if it is depthwise.

    The backward pass of depthwise convolutions in bfloat16 takes 4 to 7 times as long there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not is_slow(self, x):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


class StridedSame(TrainedInFloat32):
    """TensorFlow's SAME convolution of stride 2 for even heights and widths.

    Its padding is then constant: k - 2 pixels, the smaller half left and top. timm computes it from the
    size at each call, which ONNX files with variable sizes hold as a slow graph of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before = total // 2
        return super().forward(F.pad(x, (before, total - before) * 2))


def is_slow(layer: nn.Conv2d, x: Tensor) -> bool:
    """Tell whether the backward pass of a layer on `x` would be a depthwise one in bfloat16 on a CPU."""
    return (
        1 < layer.groups == layer.in_channels
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
    )


def _create(name: str) -> nn.Module:
    """Build a network of timm; those with windows, as Swin Transformers, for images of any size."""
    import timm

    try:
        return timm.create_model(name, features_only=True, strict_img_size=False)
    except TypeError:  # others don't know this argument
        return timm.create_model(name, features_only=True)


def _replace_convolutions(encoder: nn.Module) -> None:
    """Replace depthwise convolutions, and those of stride 2 whose padding timm computes from the size."""
    from timm.layers import Conv2dSame

    for parent in list(encoder.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and 1 < layer.groups == layer.in_channels:
                layer.__class__ = TrainedInFloat32  # the same layer in all but its forward
            elif type(layer) is Conv2dSame and layer.stride == (2, 2) and layer.dilation == (1, 1):
                static = StridedSame(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size[0],
                    layer.stride[0],
                    groups=layer.groups,
                    bias=layer.bias is not None,
                )
                static.load_state_dict(layer.state_dict())
                setattr(parent, name, static)
