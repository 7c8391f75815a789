import pytest
import torch

from cocoseg.networks.blocks import Up, conv_block, pad_to_multiple


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


def test_convolutions_in_a_row():
    block = conv_block(3, 8, 3)

    convolutions = [layer for layer in block if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 8), (8, 8), (8, 8)]
    assert (block(torch.randn(2, 3, 4, 4)) >= 0).all()
