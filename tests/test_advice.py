import logging
from types import SimpleNamespace

import pytest
import torch

from cocoseg.advice import LOOK_FROM, Advice, collapse
from cocoseg.budget import Budget
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
