import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from cocoseg.scores import Scores
from cocoseg.training.metrics import ConfusionMatrix, MeanLoss


def matrix_of(prediction: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    confusion = ConfusionMatrix(num_classes)
    confusion.update(prediction, mask)
    return confusion.compute()


def random_pair(*, num_classes: int, seed: int, images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 16, 20)
    prediction, mask = (torch.randint(0, num_classes, shape, generator=generator) for _ in range(2))
    mask[torch.rand(shape, generator=generator) < 0.2] = 255
    return prediction, mask


def test_counts_by_hand():
    mask = torch.tensor([[[0, 0, 1], [2, 255, 255]]])
    prediction = torch.tensor([[[0, 1, 1], [0, 0, 2]]])

    assert matrix_of(prediction, mask, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]  # rows: the target


def test_is_not_an_average_over_images():
    mask = torch.tensor([[[1, 1, 1, 1]], [[1, 0, 0, 0]]])
    prediction = torch.tensor([[[1, 1, 1, 1]], [[0, 0, 0, 0]]])

    scores = Scores.from_matrix(matrix_of(prediction, mask, 2).numpy())

    per_image = [
        Scores.from_matrix(matrix_of(p, m, 2).numpy()).miou for p, m in zip(prediction, mask, strict=True)
    ]
    assert per_image == [1, 0]
    assert scores.miou == pytest.approx(4 / 5)


@pytest.mark.parametrize("num_classes", [2, 7, 81])
def test_equals_torchmetrics(num_classes):
    prediction, mask = random_pair(num_classes=num_classes, seed=num_classes)
    matrix = matrix_of(prediction, mask, num_classes)
    theirs = MulticlassConfusionMatrix(num_classes, ignore_index=255)
    jaccard = MulticlassJaccardIndex(num_classes, average=None, ignore_index=255)

    assert torch.equal(matrix, theirs(prediction, mask))
    assert Scores.from_matrix(matrix.numpy()).iou == pytest.approx(
        jaccard(prediction, mask).tolist(), rel=1e-6
    )


def test_batches_add_up_and_reset_starts_anew():
    prediction, mask = random_pair(num_classes=5, seed=0)
    confusion = ConfusionMatrix(5)

    for image in range(3):
        confusion.update(prediction[image : image + 1], mask[image : image + 1])
    assert torch.equal(confusion.compute(), matrix_of(prediction, mask, 5))

    confusion.reset()
    confusion.update(prediction[:1], mask[:1])
    assert torch.equal(confusion.compute(), matrix_of(prediction[:1], mask[:1], 5))


def test_processes_add_up():
    """Each counts its own images; torchmetrics merges them by the rule that it reduces ranks by."""
    prediction, mask = random_pair(num_classes=5, seed=0)
    whole, parts = ConfusionMatrix(5), [ConfusionMatrix(5), ConfusionMatrix(5)]
    whole.update(prediction, mask)
    for part, images in zip(parts, (slice(0, 1), slice(1, 3)), strict=True):
        part.update(prediction[images], mask[images])
    parts[0].merge_state(parts[1])
    assert torch.equal(parts[0].compute(), whole.compute())

    losses = [MeanLoss(), MeanLoss()]
    for loss, value, pixels in zip(losses, (1.0, 4.0), (300, 100), strict=True):
        loss.update(torch.tensor(value), mask_of(pixels))
    losses[0].merge_state(losses[1])
    assert losses[0].compute() == 1.75


# --- mean loss


def mask_of(pixels: int) -> Tensor:
    """A mask of 20 x 20 with so many pixels that are not ignored."""
    mask = torch.full((1, 20, 20), 255)
    mask.view(-1)[:pixels] = 0
    return mask


def test_a_mean_of_means_is_weighted_by_pixels():
    """Batches differ in how many pixels are ignored."""
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), mask_of(300))
    mean.update(torch.tensor(4.0), mask_of(100))
    assert mean.compute() == 1.75
    mean.update(torch.tensor(float("nan")), mask_of(10))
    assert mean.compute().isnan()


def test_batches_without_a_pixel_do_not_count():
    mean = MeanLoss()
    mean.update(torch.tensor(0.0), mask_of(0))
    assert mean.compute() == 0
    mean.update(torch.tensor(2.0), mask_of(10))
    assert mean.compute() == 2
