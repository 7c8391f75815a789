import logging
from types import SimpleNamespace

import pytest
import torch

from cocoseg.budget.budget import Budget
from cocoseg.training.diagnostics import EARLY, Diagnostics, collapse
from tiny import LABELS, loader, random_batch, tiny_module, tiny_trainer

COLLAPSED = torch.tensor([[600, 0, 0], [300, 5, 0], [95, 0, 0]])
FINE = torch.tensor([[600, 0, 0], [100, 205, 0], [5, 0, 90]])


def warnings_of(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "cocoseg.training.diagnostics"]


def test_collapse_in_words():
    assert collapse(COLLAPSED, LABELS) == (
        "predictions collapse: 99.5% of the validation pixels are predicted as 'background', which only "
        "60.0% are; try loss.class_weights=enet, a lower optimizer.lr, or more time"
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
    assert "predicted as 'background', which only 98.0% are" in collapse(nothing_found, LABELS, late=True)
    assert collapse(torch.tensor([[980, 0, 0], [14, 1, 0], [5, 0, 0]]), LABELS, late=True) is None
    assert collapse(torch.tensor([[1000, 0, 0], [0, 0, 0], [0, 0, 0]]), LABELS, late=True) is None


def test_a_collapse_is_warned_of_once_and_not_in_the_beginning(caplog):
    trainer = SimpleNamespace(sanity_checking=False)
    module = SimpleNamespace(matrix=COLLAPSED, spec=SimpleNamespace(labels=LABELS))
    for progress, expected in ((EARLY - 0.01, 0), (EARLY, 1)):
        diagnostics = Diagnostics(Budget(None, progress=progress))
        for _ in range(2):
            diagnostics.on_validation_end(trainer, module)
        assert len(warnings_of(caplog)) == expected


def test_in_a_training(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    module = tiny_module(lr=0.0)
    with torch.no_grad():
        module.net.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    budget = Budget(None, progress=1.0)
    trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[Diagnostics(budget)], num_sanity_val_steps=2)
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    (message,) = warnings_of(caplog)
    assert message.startswith(
        "predictions collapse: 100.0% of the validation pixels are predicted as 'background'"
    )
