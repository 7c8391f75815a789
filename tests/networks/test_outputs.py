import pytest
import torch

from cocoseg.networks.outputs import training_loss
from cocoseg.training.losses import CrossEntropyLoss
from tiny import random_batch

LOSS = CrossEntropyLoss()


def logits(size: int, seed: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_auxiliary_logits_count_half_on_a_mask_of_their_size(factor):
    mask = random_batch()[1]
    main, aux = logits(16, 0), logits(16 // factor, 1)

    total, value = training_loss(LOSS, {"out": main, "aux": aux}, mask)

    smaller = mask[:, factor // 2 :: factor, factor // 2 :: factor]
    assert value == LOSS(main, mask)
    assert total.item() == pytest.approx((LOSS(main, mask) + 0.5 * LOSS(aux, smaller)).item())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"out": x}])
def test_logits_without_auxiliary_ones_have_one_loss(wrap):
    main, mask = logits(16, 0), random_batch()[1]
    total, value = training_loss(LOSS, wrap(main), mask)
    assert total is value
    assert value == LOSS(main, mask)
