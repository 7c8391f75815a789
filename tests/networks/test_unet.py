import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.unet import UNet

UPSAMPLES = ("transpose", "bilinear")


def scored(net: UNet, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return net.eval()(image)


@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 33), (16, 32), (224, 224)])
def test_logits_have_the_size_of_the_image(size, upsample):
    logits = scored(UNet(num_classes=5, base_channels=2, upsample=upsample), torch.randn(2, 3, *size))

    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


def test_a_size_that_is_no_multiple_is_padded_with_its_border_and_cropped():
    torch.manual_seed(0)
    net = UNet(num_classes=3, base_channels=2, depth=3)
    image = torch.randn(1, 3, 17, 30)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 7), (0, 2)), mode="edge")

    expected = scored(net, torch.from_numpy(padded))[..., :17, :30]

    torch.testing.assert_close(scored(net, image), expected, rtol=0, atol=0)


def by_hand(net: UNet, image: Tensor) -> Tensor:
    """A U-Net of depth 1 in evaluation mode, written out."""

    def conv(x: Tensor, block: nn.Sequential) -> Tensor:
        for first in (0, 3):
            weights, norm = block[first].weight, block[first + 1]
            x = F.conv2d(F.pad(x, (1, 1, 1, 1)), weights)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            x = x.clamp(min=0)
        return x

    batch, _, height, width = image.shape
    skip = conv(image, net.stem)
    pooled = skip.reshape(batch, -1, height // 2, 2, width // 2, 2).amax((3, 5))
    deep = conv(pooled, net.down[0])
    grow = net.up[0].grow
    # Stride 2 and kernel 2: every input pixel becomes a block of 2x2 of its own.
    blocks = torch.einsum("bihw,iouv->bohuwv", deep, grow.weight).reshape(batch, -1, height, width)
    joined = torch.cat((skip, blocks + grow.bias[:, None, None]), dim=1)
    return (
        torch.einsum("bihw,oi->bohw", conv(joined, net.up[0].conv), net.head.weight[:, :, 0, 0])
        + (net.head.bias[:, None, None])
    )


def test_forward_equals_the_network_written_out():
    torch.manual_seed(0)
    net = UNet(num_classes=3, base_channels=4, depth=1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.bias)
    image = torch.randn(2, 3, 6, 10)

    with torch.inference_mode():
        expected = by_hand(net, image)

    torch.testing.assert_close(scored(net, image), expected)


@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_every_parameter_gets_a_finite_gradient(upsample):
    torch.manual_seed(0)
    net = UNet(num_classes=3, base_channels=4, depth=2, upsample=upsample)

    net(torch.randn(2, 3, 12, 20)).square().mean().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_parameter_count_of_the_paper_sized_network():
    def conv(inputs: int, outputs: int) -> int:
        """Two 3x3 convolutions without bias, each with the two vectors of BatchNorm."""
        return 9 * inputs * outputs + 9 * outputs * outputs + 2 * 2 * outputs

    def up(width: int) -> int:
        """2x2 transposed convolution with bias from twice the width, then the pair of convolutions."""
        return 4 * 2 * width * width + width + conv(2 * width, width)

    encoder = conv(3, 64) + conv(64, 128) + conv(128, 256) + conv(256, 512) + conv(512, 1024)
    decoder = up(512) + up(256) + up(128) + up(64)
    head = 64 * 2 + 2
    with torch.device("meta"):
        net = UNet(num_classes=2)

    count = sum(parameter.numel() for parameter in net.parameters())

    assert count == encoder + decoder + head
    assert count == 31_037_698  # what github.com/milesial/Pytorch-UNet has for 3 channels and 2 classes


def test_bilinear_doubles_the_size_as_torch_does_and_has_no_transposed_convolution():
    net = UNet(num_classes=2, base_channels=2, depth=1, upsample="bilinear").eval()
    x = torch.randn(1, 4, 3, 5)
    grow = net.up[0].grow

    doubled = F.interpolate(x, size=(6, 10), mode="bilinear", align_corners=False)
    expected = F.conv2d(doubled, grow[1].weight, grow[1].bias)

    torch.testing.assert_close(grow(x), expected)
    assert grow[1].kernel_size == (1, 1)
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in net.modules())


def test_dropout_drops_whole_channels_of_the_deepest_level():
    torch.manual_seed(0)
    net = UNet(num_classes=2, base_channels=8, depth=2, dropout=0.5)
    seen = {}
    net.dropout.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))

    net(torch.randn(4, 3, 16, 16))

    before, after = seen["before"], seen["after"]
    assert before.shape == (4, 32, 4, 4)
    dropped = (after == 0).all((2, 3)) & (before != 0).any(3).any(2)
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped])


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 16, 16)
    dropping = UNet(num_classes=2, base_channels=4, depth=2, dropout=0.5)
    plain = UNet(num_classes=2, base_channels=4, depth=2)

    assert not torch.equal(dropping.train()(image), dropping(image))
    assert torch.equal(plain.train()(image), plain(image))
    assert torch.equal(scored(dropping, image), scored(dropping, image))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("num_classes", None),
        ("base_channels", 0),
        ("base_channels", 2.5),
        ("base_channels", "64"),
        ("depth", 0),
        ("depth", -1),
        ("depth", True),
        ("upsample", "nearest"),
        ("upsample", None),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", "0.1"),
        ("dropout", None),
        ("dropout", float("nan")),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is {value!r}"):
        UNet(**{"num_classes": 2, "base_channels": 2, "depth": 1, argument: value})


@pytest.mark.parametrize(
    "net",
    [
        UNet(3, base_channels=4, depth=2),
        pytest.param(ResidualUNet(3, base_channels=4, depth=3), marks=pytest.mark.slow),
    ],
)
def test_compiled_it_is_one_graph(net):
    """Torch 2.11 takes starred targets for tuples, and split the decoder at every level."""
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert compiled(torch.randn(2, 3, 30, 40)).shape == (2, 3, 30, 40)
