from types import SimpleNamespace

import pytest
import torch

from cocoseg.budget.budget import Budget
from cocoseg.training.collapse_warning import EARLY, WarnOfCollapse, collapse
from tiny import LABELS

COLLAPSED = torch.tensor([[600, 0, 0], [300, 5, 0], [95, 0, 0]])


def test_collapse_in_words():
    assert collapse(COLLAPSED, LABELS) == (
        "predictions collapse: 99.5% of the validation pixels are predicted as 'background', which only "
        "60.0% are; try loss.class_weights=enet, a lower optimizer.lr, or more time"
    )


@pytest.mark.parametrize(
    ("matrix", "is_one"),
    [
        ([[980, 0, 0], [15, 0, 0], [5, 0, 0]], True),  # rare classes count, too
        ([[600, 0, 0], [100, 205, 0], [5, 0, 90]], False),
        ([[980, 0, 0], [14, 1, 0], [5, 0, 0]], False),
        ([[1000, 0, 0], [0, 0, 0], [0, 0, 0]], False),  # nothing else was to be found
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], False),
    ],
)
def test_a_collapse_misses_the_other_classes(matrix, is_one):
    assert (collapse(torch.tensor(matrix), LABELS) is not None) == is_one


def test_a_collapse_is_warned_of_once_and_not_in_the_beginning(caplog):
    trainer = SimpleNamespace(sanity_checking=False)
    module = SimpleNamespace(matrix=COLLAPSED, spec=SimpleNamespace(labels=LABELS))
    for progress, expected in ((EARLY - 0.01, 0), (EARLY, 1)):
        callback = WarnOfCollapse(Budget(None, progress=progress))
        for _ in range(2):
            callback.on_validation_end(trainer, module)
        assert len(caplog.records) == expected
