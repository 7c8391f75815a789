import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.inference import upsampling
from cocoseg.inference.upsampling import enlarged_argmax


def smooth(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth scores (C, H, W) with regions of several pixels, like those of a network."""
    coarse = torch.randn(1, channels, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0]


def enlarge_with_torch(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Arg-max by torch alone, and a mask of the pixels where rounding can't change it."""
    whole = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
    best = whole.topk(2, dim=0).values
    return whole.argmax(0), best[0] - best[1] > 1e-4


@pytest.mark.parametrize("size", [(96, 128), (33, 47), (32, 40), (7, 9), (1, 1), (300, 3), (32, 41)], ids=str)
@pytest.mark.parametrize("channels", [2, 5, 81, 255])
def test_the_arg_max_equals_that_of_torch(size, channels):
    scores = smooth(channels, 32, 40)

    mask = enlarged_argmax(scores, size)

    expected, clear = enlarge_with_torch(scores, size)
    assert mask.shape == size
    assert mask.dtype == torch.uint8
    assert clear.float().mean() > 0.9
    assert torch.equal(mask[clear].long(), expected[clear])


def test_the_arg_max_of_noise_equals_that_of_torch():
    scores = torch.randn(7, 20, 30, generator=torch.Generator().manual_seed(1))
    expected, clear = enlarge_with_torch(scores, (64, 64))
    assert torch.equal(enlarged_argmax(scores, (64, 64))[clear].long(), expected[clear])


def test_a_class_that_wins_only_between_pixels():
    """One class is second at all four pixels, each time behind another one: its mean is the highest."""
    first = 10 * torch.eye(4).view(4, 2, 2)
    scores = torch.cat((first, torch.full((1, 2, 2), 4.0)))
    mask = enlarged_argmax(scores, (9, 9))
    assert mask[4, 4] == 4
    assert mask[0, 0] == 0
    assert mask[8, 8] == 3


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_the_size_of_blocks_changes_nothing(monkeypatch, layout):
    scores = smooth(9, 24, 31)
    if layout == "channels last":
        scores = scores[None].contiguous(memory_format=torch.channels_last)[0]
    whole = enlarged_argmax(scores, (101, 77))
    monkeypatch.setattr(upsampling, "BLOCK", 200)
    monkeypatch.setattr(upsampling, "CHUNK", 50)
    assert torch.equal(enlarged_argmax(scores, (101, 77)), whole)


def test_few_scores_are_interpolated_at_a_time(monkeypatch):
    """No more than `CHUNK` scores are interpolated at a time."""
    most = 0
    lerp = torch.lerp

    def counted(*arguments: Tensor) -> Tensor:
        nonlocal most
        result = lerp(*arguments)
        most = max(most, result.numel())
        return result

    monkeypatch.setattr(torch, "lerp", counted)
    monkeypatch.setattr(upsampling, "CHUNK", 2**18)
    mask = enlarged_argmax(smooth(81, 56, 56), (300, 400))
    assert mask.shape == (300, 400)
    assert 0 < most <= upsampling.CHUNK
