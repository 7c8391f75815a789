import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from cocoseg.comparison import GAP
from cocoseg.finish import EXAMPLES, write_sheet
from cocoseg.text import LINE
from tiny import LABELS, Reads, painted

PANEL = 27 * 5, 27 * 6  # height, width of an image of 5 x 6 pixels
HEIGHT, WIDTH = PANEL[0] + 2 * LINE, 4 * (PANEL[1] + GAP) - GAP


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (3, 3), (EXAMPLES + 2, EXAMPLES)])
def test_a_sheet_of_a_data_set_is_written(tmp_path, images, rows):
    truth = torch.arange(images).remainder(3).view(-1, 1, 1).expand(images, 5, 6)
    net = nn.Sequential(Reads(), nn.BatchNorm2d(3))
    pairs = [(painted(t[None])[0], t) for t in truth]

    write_sheet(tmp_path / "new" / "examples.png", net, pairs, LABELS, seed=0)

    with PIL.Image.open(tmp_path / "new" / "examples.png") as picture:
        pixels = np.array(picture)
    assert pixels.shape == (rows * (HEIGHT + GAP) - GAP, WIDTH, 3)
    for top in range(0, len(pixels), HEIGHT + GAP):
        truth, prediction = (pixels[top : top + PANEL[0], x : x + PANEL[1]] for x in (166, 332))
        assert (truth == prediction).all()  # all right
    assert net.training
    assert net[1].num_batches_tracked == 0  # but evaluated
