import pytest
import torch
import torch.nn.functional as F

from cocoseg import enlarged_loss
from cocoseg.enlarged_loss import enlarged_cross_entropy


@pytest.mark.parametrize("size", [(9, 14), (40, 33), (7, 5), (1, 1), (100, 3)], ids=str)
@pytest.mark.parametrize("chunk", [1, 500, 2**23])
def test_it_is_torchs_of_logits_enlarged_as_a_whole(
    size: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enlarged_loss, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 14, generator=generator)
    mask = torch.randint(0, 4, size, generator=generator).to(torch.uint8)
    mask[torch.rand(size, generator=generator) < 0.2] = 255
    whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(whole, mask[None].long(), ignore_index=255, reduction="sum")

    torch.testing.assert_close(enlarged_cross_entropy(logits, mask).float(), expected, rtol=1e-5, atol=1e-4)
