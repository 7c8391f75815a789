import logging
import types

import pytest

from cocoseg import progress
from cocoseg.budget.budget import Budget
from cocoseg.progress import track
from cocoseg.scores import Scores
from cocoseg.training import console
from cocoseg.training.console import BarProgress, LineProgress, score_table
from tiny import LABELS, loader, random_batch, tiny_module, tiny_trainer

SCORES = Scores([0.9876, None, 0.25], miou=0.25, miou_with_background=0.6188, pixel_accuracy=1.0)


def test_score_table():
    table = score_table(SCORES, LABELS).splitlines()
    lines = [line.rsplit(maxsplit=1) for line in table]

    assert len(set(map(len, table))) == 1  # aligned
    assert lines == [
        ["class", "IoU"],
        ["background", "0.988"],
        ["dog", "0.250"],
        ["classes not in validation", "1"],
        ["-" * len(table[0])],
        ["mIoU (without background)", "0.250"],
        ["mIoU (with background)", "0.619"],
        ["pixel accuracy", "1.000"],
    ]


def test_score_table_without_foreground():
    scores = Scores([1.0, None, None], miou=float("nan"), miou_with_background=1.0, pixel_accuracy=1.0)

    assert "mIoU (without background)     nan" in score_table(scores, LABELS)


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self, module, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(module, "now", lambda: self.now)


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", types.SimpleNamespace(isatty=lambda: False, write=len, flush=int))


def test_track_without_a_terminal_says_every_ten_seconds_how_far_it_is(no_terminal, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = Clock(progress, monkeypatch)
    seen = []

    for item in track(iter("abcdef"), total=6, what="masks"):
        seen.append(item)
        clock.now += 4

    assert seen == list("abcdef")
    assert caplog.messages == ["masks: 3 of 6, 12 s left", "masks: 6 of 6, 0 s left"]


def test_track_of_something_short_says_nothing(no_terminal, caplog):
    caplog.set_level(logging.INFO)

    assert list(track(range(3), total=3, what="masks")) == [0, 1, 2]
    assert not caplog.messages


def test_training_says_how_it_goes_after_the_last_validation(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="cocoseg")
    trainer = tiny_trainer(
        tmp_path,
        max_epochs=1,
        callbacks=[LineProgress(Budget(None))],
        enable_progress_bar=True,
        num_sanity_val_steps=1,
    )

    trainer.fit(tiny_module(), loader(random_batch()), loader(random_batch(seed=1)))

    lines = [record.getMessage() for record in caplog.records if record.name == "cocoseg.training.console"]
    loss, miou = (trainer.callback_metrics[name].item() for name in ("val/loss", "val/miou"))
    assert lines
    assert "step 1  " in lines[-1]
    assert lines[-1].endswith(f"val loss {loss:.3f}  val mIoU {miou:.3f}")


def test_the_bar_shows_how_far_the_run_is(tmp_path):
    bar, module = BarProgress(Budget(600)), tiny_module()
    trainer = tiny_trainer(tmp_path, max_epochs=1, callbacks=[bar], enable_progress_bar=True)
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    shown = bar.get_metrics(trainer, module)
    assert shown.keys() == {"train/loss_step", "val/loss", "val/miou", "run"}
    assert shown["run"].endswith(" of 0:10:00  epoch 1 of ~?")


def test_training_says_how_it_goes_every_ten_seconds(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="cocoseg")
    clock = Clock(console, monkeypatch)
    budget = Budget(600)
    budget.progress = 0.25
    monkeypatch.setattr(budget, "used", lambda: clock.now - 40)
    bar = LineProgress(budget)
    trainer = types.SimpleNamespace(
        callback_metrics={"train/loss_step": 0.5},
        current_epoch=3,
        global_step=70,
        num_training_batches=20,
        fit_loop=types.SimpleNamespace(epoch_loop=types.SimpleNamespace(batch_idx=9)),
    )

    for _ in range(5):
        clock.now += 7
        bar.on_train_batch_end(trainer)

    assert caplog.messages == [
        "0:01:14 of 0:10:00  epoch 3 of ~14  step 70  loss 0.500",
        "0:01:28 of 0:10:00  epoch 3 of ~14  step 70  loss 0.500",
    ]
