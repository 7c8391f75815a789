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


def gradients(net_output, mask, weight=None):
    """Loss to minimize, loss to log, and the gradients of all logits."""
    total, value = training_loss(LOSS, net_output, mask, weight)
    leaves = list(net_output.values()) if isinstance(net_output, dict) else [net_output]
    return total, value, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_multiply_the_loss_of_their_images(has_aux, layout):
    main, mask = torch.randn(5, 3, 16, 16).contiguous(memory_format=layout), torch.randint(0, 3, (5, 16, 16))
    mask[0, 3:] = 255
    mask[3] = 255  # a group of its own, without a pixel
    output = {"out": main.requires_grad_()} if has_aux else main.requires_grad_()
    if has_aux:
        output["aux"] = torch.randn(5, 3, 8, 8, requires_grad=True)
    total, value, found = gradients(output, mask, torch.tensor([0.5, 1.0, 0.5, 7.0, 1.0]))

    def of(*images):
        rows = list(images)
        part = {name: logits[rows] for name, logits in output.items()} if has_aux else output[rows]
        return training_loss(LOSS, part, mask[rows])

    light, heavy = of(0, 2), of(1, 4)
    expected = 2 / 5 * 0.5 * light[0] + 2 / 5 * heavy[0]
    leaves = list(output.values()) if has_aux else [output]
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(value, 2 / 5 * light[1] + 2 / 5 * heavy[1])
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves))


def test_one_weight_for_all_is_a_factor_and_a_weight_of_one_changes_no_bit():
    mask = random_batch()[1]
    main = logits(16, 0).requires_grad_()
    total, value, [gradient] = gradients(main, mask)
    for factor in (1.0, 0.25):  # powers of two, which don't round
        found = gradients(main, mask, torch.full((2,), factor))
        assert found[0] == factor * total
        assert found[1] == value
        assert torch.equal(found[2][0], factor * gradient)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"out": x}])
def test_logits_without_auxiliary_ones_have_one_loss(wrap):
    main, mask = logits(16, 0), random_batch()[1]
    total, value = training_loss(LOSS, wrap(main), mask)
    assert total is value
    assert value == LOSS(main, mask)
