import pytest
import torch

from cocoseg.networks.blocks import Up, pad_to_multiple, standardize
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.networks.unet import UNet


def test_padding_repeats_the_right_and_bottom_border():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)

    padded = pad_to_multiple(image, 4)[0, 0].tolist()
    assert padded == [
        [0, 1, 2, 2],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
    ]
    assert pad_to_multiple(image, 1) is image


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_a_level_of_a_decoder_doubles_the_size_and_takes_any_widths(upsample):
    up = Up(7, 3, 5, upsample, convolutions=1)

    assert up(torch.randn(2, 7, 4, 6), torch.randn(2, 3, 8, 12)).shape == (2, 5, 8, 12)
    assert up.conv[0].in_channels == 5 + 3


def test_standardized_images_do_not_depend_on_their_light():
    image = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    darker = image * torch.tensor([0.3, 0.5, 0.8]).view(3, 1, 1) - torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1)
    standardized = standardize(image)
    torch.testing.assert_close(standardized.mean((2, 3)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std((2, 3), correction=0), torch.ones(2, 3), atol=1e-2, rtol=0)
    torch.testing.assert_close(standardize(darker), standardized, atol=0.05, rtol=0)


def test_an_even_image_stays_even():
    assert (standardize(torch.full((1, 3, 1, 1), 2.0)) == 0).all()
    assert standardize(torch.randn(1, 3, 9, 9) * 1e-3).abs().max() < 0.2  # noise is not made an object


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: UNet(3, base_channels=4, depth=2, **more),
        lambda **more: ResidualUNet(3, base_channels=4, depth=2, **more),
        lambda **more: TimmUNet(3, "test_resnet", decoder_channels=(4, 4, 4, 4), **more),
    ],
)
def test_every_network_of_ours_standardizes(make):
    image = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    plain, standardizing = make().eval(), make(standardize=True).eval()
    standardizing.load_state_dict(plain.state_dict())
    dark = 0.4 * image - 1
    with torch.no_grad():
        torch.testing.assert_close(standardizing(dark), plain(standardize(dark)))
