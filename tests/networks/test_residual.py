import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cocoseg.networks.residual import ResidualBlock, ResidualUNet


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (17, 33), (64, 96)])
def test_logits_have_the_size_of_the_image(size, upsample):
    net = ResidualUNet(num_classes=5, base_channels=2, upsample=upsample).eval()

    with torch.inference_mode():
        logits = net(torch.randn(2, 3, *size))

    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_equals_the_formula_written_out(stride):
    torch.manual_seed(0)
    block = ResidualBlock(4, 4 * stride, stride, 0.0).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 4, 6, 10)

    def norm(x, layer):
        x = (x - layer.running_mean[:, None, None]) / (layer.running_var[:, None, None] + layer.eps).sqrt()
        return x * layer.weight[:, None, None] + layer.bias[:, None, None]

    inner = F.conv2d(F.pad(x, (1, 1, 1, 1)), block.conv1.weight, stride=stride)
    inner = F.conv2d(F.pad(norm(inner, block.norm1).clamp(min=0), (1, 1, 1, 1)), block.conv2.weight)
    around = x
    if stride == 2:
        means = x.reshape(2, 4, 3, 2, 5, 2).mean((3, 5))
        around = norm(
            torch.einsum("bihw,oi->bohw", means, block.shortcut[1].weight[:, :, 0, 0]), block.shortcut[2]
        )
    expected = (norm(inner, block.norm2) + around).clamp(min=0)

    torch.testing.assert_close(block(x), expected)


def test_blocks_and_how_likely_they_are_left_out():
    net = ResidualUNet(num_classes=2, base_channels=2, depth=3, blocks=2, stochastic_depth=0.7)
    blocks = [module for module in net.modules() if isinstance(module, ResidualBlock)]

    assert [len(level) for level in net.encoder.levels] == [1, 2, 2, 2]
    assert [block.drop.p for block in blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert {block.drop.mode for block in blocks} == {"row"}


def test_stochastic_depth_leaves_out_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    block = ResidualBlock(3, 3, 1, 0.25).train()
    seen = {}
    block.drop.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], after=output))

    block(torch.randn(400, 3, 4, 4))

    left_out = (seen["after"] == 0).flatten(1).all(1)
    assert 0.15 < left_out.float().mean() < 0.35
    torch.testing.assert_close(seen["after"][~left_out], seen["before"][~left_out] / 0.75)


def test_every_parameter_gets_a_finite_gradient():
    torch.manual_seed(0)
    net = ResidualUNet(num_classes=3, base_channels=4, depth=3)

    net(torch.randn(2, 3, 24, 40)).square().mean().backward()

    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("base_channels", 2.5),
        ("depth", 0),
        ("blocks", 0),
        ("stochastic_depth", 1.0),
        ("stochastic_depth", -0.1),
        ("upsample", "nearest"),
        ("dropout", None),
    ],
)
def test_a_bad_argument_is_named(argument, value):
    with pytest.raises(ValueError, match=rf"^{argument} is {value!r}"):
        ResidualUNet(**{"num_classes": 2, "base_channels": 2, "depth": 1, argument: value})
