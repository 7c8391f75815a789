import pytest
import torch

from cocoseg.networks.outputs import training_loss
from cocoseg.training.losses import CrossEntropyLoss
from tiny import random_batch

LOSS = CrossEntropyLoss()


def logits(size: int, seed: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_one_kind_of_auxiliary_logits_counts_half():
    mask = random_batch()[1]
    main, aux = logits(16, 0), logits(16, 1)

    total, value = training_loss(LOSS, {"out": main, "aux": aux}, mask)

    assert value == LOSS(main, mask)
    assert total.item() == pytest.approx((LOSS(main, mask) + 0.5 * LOSS(aux, mask)).item())


def test_coarser_logits_count_half_of_the_finer_ones_on_a_smaller_mask():
    mask = random_batch()[1]
    sizes = (16, 8, 4)
    parts = [logits(size, seed) for seed, size in enumerate(sizes)]

    total, _ = training_loss(LOSS, {"out": parts[0], "aux": parts[1:]}, mask)

    expected = sum(
        0.5**i * LOSS(part, mask[:, 2**i // 2 :: 2**i, 2**i // 2 :: 2**i]) for i, part in enumerate(parts)
    )
    assert total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"out": x}, lambda x: {"out": x, "aux": ()}])
def test_logits_without_auxiliary_ones_have_one_loss(wrap):
    main, mask = logits(16, 0), random_batch()[1]
    total, value = training_loss(LOSS, wrap(main), mask)
    assert total is value
    assert value == LOSS(main, mask)
