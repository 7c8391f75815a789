import pytest
import torch

from cocoseg.errors import CocosegError
from cocoseg.networks.blocks import Up, convolved, padded, require_several_values


def test_padding_repeats_the_right_and_bottom_border():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)

    assert padded(image, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert padded(image, 1) is image


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 32, 32), (1, 3, 5, 32)])
def test_a_single_value_per_channel_is_refused(shape):
    with pytest.raises(CocosegError, match=rf"one image of {shape[2]}x{shape[3]} .* batch_size, or less$"):
        require_several_values(torch.zeros(shape), 32, ", or less")


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 33, 1), (1, 3, 32, 40)])
def test_several_values_per_channel_pass(shape):
    require_several_values(torch.zeros(shape), 32, "")


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_a_level_of_a_decoder_doubles_the_size_and_takes_any_widths(upsample):
    up = Up(7, 3, 5, upsample, convolutions=1)

    assert up(torch.randn(2, 7, 4, 6), torch.randn(2, 3, 8, 12)).shape == (2, 5, 8, 12)
    assert up.conv[0].in_channels == 5 + 3


def test_convolutions_in_a_row():
    block = convolved(3, 8, 3)

    convolutions = [layer for layer in block if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 8), (8, 8), (8, 8)]
    assert (block(torch.randn(2, 3, 4, 4)) >= 0).all()
