import pytest
import torch
import torchvision

from cocoseg.networks.resnet_unet import ENCODERS, ResNetEncoder, ResNetUNet

NARROW = (8, 8, 8, 8, 4)


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (33, 65), (64, 32)])
def test_logits_have_the_size_of_the_image(size, upsample):
    net = ResNetUNet(5, "resnet18", decoder_channels=NARROW, upsample=upsample).eval()

    with torch.inference_mode():
        logits = net(torch.randn(2, 3, *size))

    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_encoder_is_torchvisions(name):
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(name, weights=None).eval()
    encoder = ResNetEncoder(name).eval()
    image = torch.randn(1, 3, 64, 96)

    missing, unknown = encoder.load_state_dict(resnet.state_dict(), strict=False)

    assert (missing, unknown) == ([], ["fc.weight", "fc.bias"])
    with torch.inference_mode():
        features = encoder(image)
        classes = resnet.fc(features[-1].mean((2, 3)))
        torch.testing.assert_close(classes, resnet(image))
    assert [tuple(part.shape[2:]) for part in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(part.shape[1] for part in features) == encoder.widths


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_fits_the_decoder(name):
    with torch.device("meta"):
        net = ResNetUNet(3, name).eval()
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_every_parameter_gets_a_finite_gradient():
    torch.manual_seed(0)
    net = ResNetUNet(3, "resnet18", decoder_channels=NARROW)

    net(torch.randn(2, 3, 40, 64)).square().mean().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net = ResNetUNet(2, "resnet18", decoder_channels=NARROW, dropout=0.5)
    image = torch.randn(2, 3, 32, 32)

    assert not torch.equal(net(image), net(image))
    assert torch.equal(net.eval()(image), net(image))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("encoder", "resnet33"),
        ("encoder", None),
        ("decoder_channels", [8, 8]),
        ("upsample", "nearest"),
        ("dropout", 1.0),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is "):
        ResNetUNet(**{"num_classes": 2, "encoder": "resnet18", argument: value})


def test_a_bad_width_is_named():
    with pytest.raises(ValueError, match=r"^decoder_channels\[1\] is 0"):
        ResNetUNet(2, "resnet18", decoder_channels=[8, 0, 8, 8, 8])
