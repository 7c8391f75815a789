"""A U-Net on encoders of timm, with random weights."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import Conv2dSame
from torch import nn

from cocoseg.networks.encoders import StridedSame, TrainedInFloat32, features_of, make_encoder
from cocoseg.networks.pixels import normalize
from cocoseg.networks.timm_unet import TimmUNet

NARROW = (8, 8, 8, 8, 4)


def small(
    encoder: str = "test_resnet", classes: int = 3, channels: tuple = NARROW, **options: object
) -> TimmUNet:
    return TimmUNet(classes, encoder, decoder_channels=channels, **options)


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (33, 65), (64, 32)])
def test_logits_have_the_size_of_the_image(size, upsample):
    net = small(upsample=upsample).eval()

    with torch.inference_mode():
        logits = net(torch.randn(2, 3, *size))

    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


# Strides 2 to 32, 4 to 32 (no skip at half the size), 1 to 32, and features with channels last.
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("test_efficientnet", 5),
        ("test_convnext", 5),
        ("test_convnext", 4),
        ("vgg11_bn", 4),
        ("test_mambaout", 3),
        *(
            pytest.param(name, levels, marks=pytest.mark.slow)
            for name in ("tf_efficientnet_lite0", "convnext_atto", "hgnetv2_b0", "mobilenetv4_conv_small")
            for levels in (5, 4, 3)
        ),
    ],
)
def test_encoders_of_many_kinds_fit_the_decoder(name, levels):
    with torch.device("meta"):
        net = small(name, channels=NARROW[:levels]).eval()
        logits = net(torch.zeros(1, 3, 70, 40))

    assert logits.shape == (1, 3, 70, 40)
    assert net.multiple == 32


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_resnets_are_torchvisions(name):
    """So model files with torchvision's ResNets load."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None).eval()
    encoder = make_encoder(name).eval()
    state = theirs.state_dict()

    encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})

    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        features = features_of(encoder, image)
        torch.testing.assert_close(theirs.fc(features[32].mean((2, 3))), theirs(image))
    assert list(features) == [2, 4, 8, 16, 32]
    assert all(feature.shape[2:] == (64 // stride, 96 // stride) for stride, feature in features.items())


@pytest.mark.parametrize("kernel", [3, 5])
def test_constant_padding_is_tensorflows_same(kernel):
    torch.manual_seed(0)
    theirs = Conv2dSame(4, 6, kernel, stride=2)
    ours = StridedSame(4, 6, kernel, stride=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 64, 32)
    assert torch.equal(ours(x), theirs(x))


def test_no_padding_by_size_is_left():
    encoder = make_encoder("tf_efficientnet_lite0")
    assert not any(isinstance(layer, Conv2dSame) for layer in encoder.modules())
    assert sum(isinstance(layer, StridedSame) for layer in encoder.modules()) == 5


def trained_one_step(net: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by name, of a step in bfloat16."""
    net.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(image).float().square().mean()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in net.named_parameters()}


def test_depthwise_convolutions_are_trained_in_float32_on_a_cpu():
    torch.manual_seed(0)
    net, image = small("tf_efficientnet_lite0"), torch.randn(2, 3, 64, 64)
    seen = []
    for layer in net.modules():
        if isinstance(layer, TrainedInFloat32) and layer.groups > 1:
            layer.register_forward_hook(lambda layer, _, output: seen.append((layer.groups, output)))

    trained_one_step(net, image)
    assert len(seen) == 16
    assert all(output.dtype == torch.bfloat16 for _, output in seen)  # what follows is as fast as before
    computed = {output.grad_fn.next_functions[0][0].name() for _, output in seen}
    assert computed == {"ConvolutionBackward0"}  # before the output is rounded, so it is in float32
    seen.clear()
    net(image)
    assert all(output.dtype == torch.float32 for _, output in seen)


@pytest.mark.parametrize("kind", [TrainedInFloat32, StridedSame])
def test_a_depthwise_convolution_is_exact_while_it_is_trained(kind):
    torch.manual_seed(0)
    layer = kind(8, 8, 3, stride=2, groups=8)
    x = torch.randn(2, 8, 32, 32).bfloat16()
    expected = layer(x.float())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = layer(x)
        with torch.no_grad():
            evaluated = layer(x)
    (trained.float() * x[:, :, ::2, ::2][..., : trained.shape[2], : trained.shape[3]]).sum().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    (expected * x[:, :, ::2, ::2][..., : trained.shape[2], : trained.shape[3]]).sum().backward()

    assert torch.equal(trained, expected.bfloat16())
    assert not torch.equal(evaluated, trained)  # its weights were rounded, too
    torch.testing.assert_close(evaluated, trained, atol=0.05, rtol=0.05)
    assert (gradient.dtype, evaluated.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(gradient, layer.weight.grad, atol=1e-4, rtol=1e-4)


def test_other_convolutions_are_trained_in_bfloat16():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16, 16)
    for groups in (1, 4):
        layer = TrainedInFloat32(8, 8, 3, groups=groups)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, groups=groups))


def test_images_are_converted_to_the_encoders_own_normalization():
    """tf_efficientnet_lite0 was trained on images in -1..1."""
    net = small("tf_efficientnet_lite0")
    image = torch.randint(256, (1, 3, 4, 6), dtype=torch.uint8)

    seen = []
    for part in (net.encoder, net.stem):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., :4, :6]))

    net.eval()(normalize(image))

    assert len(seen) == 2
    for converted in seen:
        torch.testing.assert_close(converted, image / 127.5 - 1, atol=1e-5, rtol=0)
    assert {"convert.scale", "convert.shift"} <= net.state_dict().keys()
    usual = small("resnet18")  # normalized by mean and deviation of ImageNet
    assert not any(key.startswith("convert") for key in usual.state_dict())


def test_every_parameter_gets_a_finite_gradient():
    torch.manual_seed(0)
    net = small("tf_efficientnet_lite0")

    net(torch.randn(2, 3, 40, 64)).square().mean().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_four_levels_end_at_half_the_size():
    net = small(channels=NARROW[:4]).eval()
    seen = []
    net.head.register_forward_hook(lambda *_, **__: seen.append(_[2]))

    with torch.inference_mode():
        logits = net(torch.randn(1, 3, 64, 96))

    assert seen[0].shape == (1, 3, 32, 48)
    torch.testing.assert_close(logits, F.interpolate(seen[0], size=(64, 96), mode="bilinear"))
    assert net.stem is None


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = small(dropout=0.5)
    image = torch.randn(2, 3, 32, 32)

    assert not torch.equal(net(image), net(image))
    assert torch.equal(net.eval()(image), net(image))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("encoder", "resnet33"),
        ("encoder", None),
        ("encoder", "vit_tiny_patch16_224"),
        ("decoder_channels", []),
        ("decoder_channels", [8] * 6),
        ("upsample", "nearest"),
        ("dropout", 1.0),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is "):
        TimmUNet(**{"num_classes": 2, "encoder": "test_resnet", argument: value})


def test_a_misspelt_encoder_is_corrected():
    with pytest.raises(ValueError, match=r"did you mean resnet34"):
        make_encoder("resnet34.ra4_e3600_r224_in1")


def test_a_bad_width_is_named():
    with pytest.raises(ValueError, match=r"^decoder_channels\[1\] is 0"):
        TimmUNet(2, "test_resnet", decoder_channels=[8, 0, 8, 8, 8])
