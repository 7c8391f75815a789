from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cocoseg.inference.tiling import OVERLAP, STEP, Box, blend_tiles, spans


@pytest.mark.parametrize("length", [1, 64, 65, 96, 97, 128, 200, 1000, 1001])
@pytest.mark.parametrize("tile", [64, 100, 768])
def test_spans_cover_the_length_and_overlap(length, tile):
    found = spans(length, tile)
    assert found[0][0] == 0
    assert found[-1][1] == length
    for (begin, end), (after, until) in pairwise(found):
        assert begin % STEP == after % STEP == 0
        assert begin < after
        assert end < until
        assert end - after >= min(OVERLAP, tile // 4)
    assert all(end - begin <= tile + STEP - 1 for begin, end in found)


def scores_of(whole: Tensor, boxes: list[Box] | None = None):
    def part(box: Box) -> Tensor:
        if boxes is not None:
            boxes.append(box)
        top, bottom, left, right = box
        return whole[:, top:bottom, left:right]

    return part


@pytest.mark.parametrize("size", [(300, 410), (410, 300), (64, 64), (40, 500), (65, 97)], ids=str)
def test_parts_of_a_whole_become_the_whole(size):
    """Weights add up to 1, at the borders too."""
    whole = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    ends, bands = zip(*blend_tiles(scores_of(whole), size, (96, 128)), strict=True)
    result = torch.cat(bands, 1)
    assert result.dtype == torch.float32
    assert ends[-1] == result.shape[1]
    assert list(ends) == torch.tensor([band.shape[1] for band in bands]).cumsum(0).tolist()
    torch.testing.assert_close(result, whole, atol=4e-3, rtol=2e-3)


def test_seams_go_over_smoothly():
    """Two tiles that disagree: from one to the other without a step."""
    size = (64, 300)
    boxes: list[Box] = []

    def by_number(box: Box) -> Tensor:
        boxes.append(box)
        return torch.full((1, box[1] - box[0], box[3] - box[2]), float(len(boxes)))

    row = torch.cat([band for _, band in blend_tiles(by_number, size, (64, 192))], 1)[0, 0]
    assert len(boxes) == 2
    (_, _, _, end), (_, _, begin, _) = boxes
    assert row[:begin].unique().tolist() == [1.0]
    assert row[end:].unique().tolist() == [2.0]
    steps = row.diff()
    assert (steps >= 0).all()
    assert steps.max() < 4 / (end - begin)
    assert ((row[begin:end] > 1) & (row[begin:end] < 2)).float().mean() > 0.9
