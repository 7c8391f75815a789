import pytest
import torch

from cocoseg.losses import CrossEntropyLoss


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_is_0_with_gradient_0_where_all_is_ignored(logits, label_smoothing):
    loss = CrossEntropyLoss(label_smoothing=label_smoothing)(logits, torch.full((2, 5, 7), 255))
    loss.backward()

    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_another_ignore_index(logits):
    mask = random_mask(ignored=0)

    loss = CrossEntropyLoss(ignore_index=2)(logits, mask)

    torch.testing.assert_close(loss, torch.nn.CrossEntropyLoss(ignore_index=2)(logits, mask))
