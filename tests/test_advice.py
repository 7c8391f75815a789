import logging
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cocoseg.advice import HIGH_FOR, LOOK_FROM, Advice, LossCourse, collapse, one_sided
from cocoseg.budget import Budget
from cocoseg.failures import LOOK_EVERY
from cocoseg.labels import LabelClass, LabelMap
from tiny import LABELS, loader, random_batch, tiny_module, tiny_trainer

COLLAPSED = torch.tensor([[600, 0, 0], [300, 5, 0], [95, 0, 0]])
FINE = torch.tensor([[600, 0, 0], [100, 205, 0], [5, 0, 90]])


def said(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "cocoseg.advice"]


def test_collapse_in_words():
    assert collapse(COLLAPSED, LABELS) == (
        "predictions collapse: 99.5% of the validation pixels are taken for 'background', which 60.0% are; "
        "try loss.class_weights=enet, a lower optimizer.lr, or more time"
    )


@pytest.mark.parametrize(
    "matrix",
    [FINE, torch.zeros(3, 3, dtype=torch.int64), torch.tensor([[980, 0, 0], [15, 0, 0], [5, 0, 0]])],
)
def test_no_collapse(matrix):
    """Nor where nearly everything is background in truth."""
    assert collapse(matrix, LABELS) is None


def test_late_in_a_run_rare_classes_count_too():
    nothing_found = torch.tensor([[980, 0, 0], [15, 0, 0], [5, 0, 0]])
    assert "taken for 'background', which 98.0% are" in collapse(nothing_found, LABELS, late=True)
    assert collapse(torch.tensor([[980, 0, 0], [14, 1, 0], [5, 0, 0]]), LABELS, late=True) is None
    assert collapse(torch.tensor([[1000, 0, 0], [0, 0, 0], [0, 0, 0]]), LABELS, late=True) is None


def advised(*losses: tuple[float, float], progress: float = 0.5, matrix: torch.Tensor = FINE) -> None:
    """The validation and training losses of one validation after another."""
    advice = Advice(Budget(None, progress=progress))
    for val_loss, train_loss in losses:
        metrics = {"val/loss": torch.tensor(val_loss), "train/loss": torch.tensor(train_loss)}
        trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics)
        module = SimpleNamespace(matrix=matrix, spec=SimpleNamespace(labels=LABELS))
        advice.on_validation_end(trainer, module)


def test_learning_by_heart_is_said_once(caplog):
    advised((1.0, 1.0), (0.5, 0.6), (0.6, 0.5), (0.7, 0.4), (0.8, 0.3), (0.9, 0.2), (1.0, 0.1), (1.0, 0.1))
    (message,) = said(caplog)
    assert "rose from 0.500 to 0.800 while the training loss fell from 0.600 to 0.300" in message
    assert "augment=default" in message


@pytest.mark.parametrize(
    "losses",
    [
        [(0.5, 0.6), (0.52, 0.5), (0.53, 0.4), (0.54, 0.3)],  # hardly worse
        [(0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9)],  # training gets worse as well
        [(0.5, 0.6), (0.6, 0.5), (0.7, 0.4), (0.4, 0.3), (0.5, 0.2), (0.6, 0.2)],  # better in between
        [(0.5, 1.2), (0.6, 1.1), (0.7, 1.0), (0.6, 0.9)],  # others are told better than known ones
    ],
)
def test_nothing_is_said_where_it_is_not_so(losses, caplog):
    advised(*losses)
    assert said(caplog) == []


def test_a_collapse_is_said_once_and_not_in_the_beginning(caplog):
    advised((1.0, 1.0), (0.9, 0.9), matrix=COLLAPSED, progress=LOOK_FROM - 0.01)
    assert said(caplog) == []
    advised((1.0, 1.0), (0.9, 0.9), matrix=COLLAPSED)
    assert len(said(caplog)) == 1


def test_in_a_training(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    module = tiny_module(lr=0.0)
    with torch.no_grad():
        module.net.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    budget = Budget(None, progress=1.0)
    trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[Advice(budget)], num_sanity_val_steps=2)
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    (message,) = said(caplog)
    assert message.startswith(
        "predictions collapse: 100.0% of the validation pixels are taken for 'background'"
    )


# --- divergence


def course(*means: float, began: float = 2.5, chance: float = math.log(11)) -> bool:
    """Whether a loss that goes through these means over ten steps ever rises."""
    watched = LossCourse()
    watched.rises([began], chance)
    rises = [watched.rises([mean] * LOOK_EVERY, chance) for mean in means]
    return any(rises)


DOWN = (2.0, 1.5, 1.0, 0.6)


@pytest.mark.parametrize(
    "means",
    [
        (*DOWN, *[2.0] * HIGH_FOR),  # most is lost again
        (*DOWN, *[9.0] * HIGH_FOR),
        [2.8] * HIGH_FOR,  # worse than an untrained network, from the first step on
        (2.4, *[40.0] * HIGH_FOR),
        (*DOWN, 1.7, 1.6, 1.8, 2.5, 1.9),
    ],
)
def test_a_loss_that_rises_for_good(means):
    assert course(*means)


@pytest.mark.parametrize(
    "means",
    [
        (*DOWN, *[2.0] * (HIGH_FOR - 1)),
        (*DOWN, *[2.0, 2.0, 2.0, 0.7] * 5),  # peaks
        (*DOWN, *[1.4] * 20),  # stronger augmentation, larger images
        (*DOWN, 0.02, *[0.2] * 20),  # ten times a very low one
        [2.6, 2.4, 2.6, 2.5, 2.7] * 5,  # learns nothing, but does no harm either
        [2.45] * 20,
    ],
)
def test_a_loss_that_does_not(means):
    assert not course(*means)


def test_noise_is_no_divergence():
    """Steps of a falling loss that often double, in many runs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        watched = LossCourse()
        for step in range(0, 1000, LOOK_EVERY):
            mean = 0.05 + 2.4 * math.exp(-step / 150)
            losses = mean * torch.exp(0.5 * torch.randn(LOOK_EVERY, generator=generator))
            assert not watched.rises(losses.tolist(), math.log(11))


def test_a_network_that_was_trained_before_may_get_a_little_worse():
    """Its first loss is far below chance."""
    assert not course(*[0.4] * 20, began=0.3)
    assert course(*[1.0] * HIGH_FOR, began=0.3)


def trained(folder: Path, lr: float, **options: object) -> Advice:
    advice = Advice(Budget(None))
    trainer = tiny_trainer(folder, max_steps=90, max_epochs=-1, callbacks=[advice], **options)
    trainer.fit(tiny_module(lr=lr), loader(*(random_batch(seed=seed) for seed in range(4))))
    return advice


def test_a_silly_rate_is_said_once(tmp_path, caplog):
    trained(tmp_path, lr=300.0)
    (message,) = said(caplog)
    assert re.match(r"training diverges: the loss rose from \d+\.\d{3} to \d+\.\d{3}; ", message)
    assert message.endswith(
        "lower optimizer.lr (now 300), e.g. to a third, or set trainer.gradient_clip_val=1"
    )


def test_clipping_is_not_proposed_where_it_is_set(tmp_path, caplog):
    trained(tmp_path, lr=3000.0, gradient_clip_val=100.0)
    (message,) = said(caplog)
    assert message.endswith("lower optimizer.lr (now 3000), e.g. to a third")


def test_a_good_rate_stays_silent(tmp_path, caplog):
    advice = trained(tmp_path, lr=0.05)
    assert said(caplog) == []
    assert advice.course.lowest < advice.course.began


def test_accumulated_batches_count_in_full(tmp_path, caplog):
    """Lightning divides their losses by how many they are."""
    plain, halves = trained(tmp_path, lr=0.0), trained(tmp_path, lr=0.0, accumulate_grad_batches=2)
    assert halves.course.began == pytest.approx(plain.course.began)
    assert halves.course.last == pytest.approx(plain.course.last, rel=0.05)


def test_a_run_that_goes_on_knows_where_it_began(tmp_path, caplog):
    before = trained(tmp_path, lr=0.05)
    advice = Advice(Budget(None))
    advice.load_state_dict(before.state_dict())
    assert (advice.course.began, advice.course.lowest) == (before.course.began, before.course.lowest)


# --- classes on one side only


def counts(*shown: set[int]) -> np.ndarray:
    """Pixels per class of images that show these."""
    return np.array([[9 * (label in classes) for label in range(3)] for classes in shown], dtype=np.int32)


def test_classes_that_only_one_set_shows():
    learned, scored = one_sided(counts({0, 1}, {0}), counts({0, 2}), LABELS)
    assert learned.startswith("1 class is (dog) in validation, but on no training image: an IoU of 0")
    assert "try more images" in learned
    assert scored.startswith("1 class is (cat) on training images, but not in validation: no score")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (counts({0, 1, 2}), counts({0, 1}, {2})),
        (counts({1, 2}), counts({0, 1, 2})),  # background
        (counts({0, 1}), counts({0, 1})),  # what nobody shows the report tells
    ],
)
def test_nothing_is_said_of_classes_on_both_sides(train, val):
    assert one_sided(train, val, LABELS) == []


def test_many_classes_are_counted():
    labels = LabelMap(tuple(LabelClass((i,), f"c{i}", (0, 0, 0)) for i in range(9)))
    train = np.ones((4, 9), dtype=np.int32)
    val = train * [1, 1, 0, 0, 0, 0, 0, 0, 0]
    (message,) = one_sided(train, val, labels)
    assert message.startswith("7 classes are (c2, c3, c4, c5, c6, and 2 more) on training images")
