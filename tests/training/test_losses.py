import pytest
import torch

from cocoseg.training.losses import CrossEntropyDiceLoss, CrossEntropyLoss, dice_loss


@pytest.fixture(params=["contiguous", "channels last", "cropped"])
def logits(request):
    """In each layout that a network may give."""
    values = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    if request.param == "cropped":
        values = torch.nn.functional.pad(values, (0, 1, 0, 3))
    if request.param != "contiguous":
        values = values.contiguous(memory_format=torch.channels_last)
    return values[..., :5, :7].requires_grad_()


def random_mask(*, ignored: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 4, (2, 5, 7), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < ignored] = 255
    return mask


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_equals_torch_in_value_and_gradient(logits, ignored, label_smoothing):
    mask = random_mask(ignored=ignored)
    reference = torch.nn.CrossEntropyLoss(ignore_index=255, label_smoothing=label_smoothing)

    expected = reference(logits, mask)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = CrossEntropyLoss(label_smoothing=label_smoothing)(logits, mask)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert loss.shape == ()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_by_hand():
    # p(right) = 1/2 and 1/4; the third pixel does not count.
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 3.0, 0.0]]).log_softmax(0)
    logits[:, 1] = torch.tensor([0.25, 0.75]).log()
    loss = CrossEntropyLoss()(logits.view(1, 2, 1, 3), torch.tensor([[[1, 0, 255]]]))

    assert loss.item() == pytest.approx((torch.tensor(2.0).log() + torch.tensor(4.0).log()).item() / 2)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropyLoss(),
        CrossEntropyLoss(label_smoothing=0.1),
        CrossEntropyLoss(class_weights=[1.0, 2.0, 3.0, 4.0]),
        dice_loss,
    ],
)
def test_is_0_with_gradient_0_where_all_is_ignored(logits, loss):
    value = loss(logits, torch.full((2, 5, 7), 255))
    value.backward()

    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


# --- class weights


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weights_as_torch_has_them(logits, label_smoothing):
    mask, weights = random_mask(ignored=0.3), [0.5, 1.0, 3.0, 0.0]
    reference = torch.nn.CrossEntropyLoss(torch.tensor(weights), None, 255, label_smoothing=label_smoothing)
    loss = CrossEntropyLoss(label_smoothing=label_smoothing, class_weights=weights)

    torch.testing.assert_close(loss(logits, mask), reference(logits, mask))


def test_weights_are_no_part_of_a_model():
    """They follow from the data, and no checkpoint should depend on them."""
    assert CrossEntropyLoss(class_weights=[1.0, 2.0]).state_dict() == {}


# --- Dice


def test_dice_by_hand():
    # Two pixels: p = (1/4, 3/4), target 1, and p = (1/2, 1/2), target 0; a third does not count.
    logits = torch.tensor([[0.25, 0.5, 0.9], [0.75, 0.5, 0.1]]).log().view(1, 2, 1, 3)
    mask = torch.tensor([[[1, 0, 255]]])
    of_0 = 2 * 0.5 / (0.75 + 1)
    of_1 = 2 * 0.75 / (1.25 + 1)

    assert dice_loss(logits, mask).item() == pytest.approx(1 - (of_0 + of_1) / 2)


def test_dice_leaves_out_classes_that_are_not_shown():
    logits = torch.tensor([[0.5, 0.5], [0.25, 0.25], [0.25, 0.25]]).log().view(1, 3, 1, 2)

    assert dice_loss(logits, torch.tensor([[[0, 0]]])).item() == pytest.approx(1 - 2 * 1.0 / (1.0 + 2))


def test_ignored_pixels_change_nothing(logits):
    mask = random_mask(ignored=0.4)
    changed = torch.where((mask == 255).unsqueeze(1), 7.0 * logits.detach().flip(1), logits.detach())

    for loss in (CrossEntropyLoss(class_weights=[1.0, 2.0, 3.0, 4.0]), CrossEntropyDiceLoss()):
        torch.testing.assert_close(loss(changed, mask), loss(logits, mask))


def test_cross_entropy_and_dice_are_added(logits):
    mask = random_mask(ignored=0.2)
    loss = CrossEntropyDiceLoss(dice=0.5, label_smoothing=0.1)

    expected = CrossEntropyLoss(label_smoothing=0.1)(logits, mask) + 0.5 * dice_loss(logits, mask)
    torch.testing.assert_close(loss(logits, mask), expected)


@pytest.mark.parametrize("loss", [CrossEntropyLoss(class_weights=[1.0] * 4), CrossEntropyDiceLoss()])
def test_half_precision_is_summed_in_float32(loss):
    logits = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))

    assert loss(logits, mask).dtype == torch.float32
    torch.testing.assert_close(loss(logits, mask), loss(logits.float(), mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loss", [CrossEntropyLoss, CrossEntropyDiceLoss])
def test_a_loss_moved_to_another_precision(logits, loss, dtype):
    weights, mask = [0.5, 1.0, 2.0, 4.0], random_mask(ignored=0.2)
    moved = loss(class_weights=weights).to(dtype)(logits.to(dtype), mask)

    torch.testing.assert_close(moved, loss(class_weights=weights)(logits, mask), atol=0.02, rtol=0.02)
