import io
import logging
import os
import re
import sys
import types

import pytest
from tqdm import tqdm

from cocoseg import progress
from cocoseg.budget.budget import Budget
from cocoseg.progress import track
from cocoseg.run_folder import Console
from cocoseg.scores import Scores
from cocoseg.training import console
from cocoseg.training.console import BarProgress, LineProgress, ValidationLines, score_table
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


def fit(folder, *callbacks, **options):
    trainer = tiny_trainer(folder, callbacks=list(callbacks), **{"enable_progress_bar": True, **options})
    trainer.fit(tiny_module(), loader(random_batch()), loader(random_batch(seed=1)))
    return trainer


def test_each_validation_is_a_line_of_the_log(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="cocoseg.training.console")
    monkeypatch.setattr(Budget, "used", lambda self: self.used_before)  # no time passes
    budget = Budget(600, used_before=100)
    trainer = fit(
        tmp_path,
        ValidationLines(budget),
        max_epochs=2,
        num_sanity_val_steps=1,
        enable_progress_bar=False,
    )

    lines = [record.message for record in caplog.records if record.name == "cocoseg.training.console"]
    assert [line.split("  ")[:3] for line in lines] == [
        ["0:01:40", "epoch 1", "step 1"],
        ["0:01:40", "epoch 2", "step 2"],
    ]
    shown = {"train/loss_step": "loss", "val/loss": "val loss", "val/miou": "val mIoU"}
    assert lines[-1].split("  ")[3:] == [
        f"{name} {trainer.callback_metrics[key].item():.3f}" for key, name in shown.items()
    ]


class Terminal(io.StringIO):
    def fileno(self):
        return 2


def test_the_bar_fits_80_columns_with_the_time_first(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("os.get_terminal_size", lambda file: os.terminal_size((80, 24)))
    monkeypatch.setattr(BarProgress, "every", 0.0)
    monkeypatch.setattr(Budget, "used", lambda self: self.used_before)  # no time passes
    budget = Budget(6 * 3600, used_before=3 * 3600)
    budget.progress = 0.45

    trainer = fit(tmp_path, BarProgress(budget), max_epochs=12, num_sanity_val_steps=1)

    frames = [frame for frame in terminal.getvalue().split("\r") if frame.strip()]
    loss = trainer.callback_metrics["train/loss_step"].item()
    assert all(re.match("3:00:00 of 6:00:00", frame) and len(frame) <= 80 for frame in frames)
    assert any(frame.endswith("| validation, batch 1 of 1") for frame in frames)
    last = [frame for frame in frames if "epoch" in frame][-1]
    assert re.fullmatch(
        rf".{{18}}  45%\|[#\d ]+\| epoch 12 of ~27  loss {loss:.3f}  val mIoU \d\.\d\d\d", last
    )


def test_a_message_is_written_above_the_bar(capsys):
    with tqdm(total=1, bar_format="0:01:40 of 0:10:00"):
        capsys.readouterr()
        Console(sys.stdout).emit(logging.makeLogRecord({"msg": "validated"}))
        written = capsys.readouterr()

    assert written.out == "validated\n"
    cleared, bar = written.err.strip("\r").split("\r", 1)
    assert cleared.isspace()
    assert bar.strip("\r") == "0:01:40 of 0:10:00"


def test_training_says_how_it_goes_every_ten_seconds(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="cocoseg")
    clock = Clock(console, monkeypatch)
    budget = Budget(600)
    budget.progress = 0.25
    monkeypatch.setattr(budget, "used", lambda: clock.now - 40)
    lines = LineProgress(budget)
    trainer = types.SimpleNamespace(
        callback_metrics={"train/loss_step": 0.5},
        current_epoch=3,
        num_training_batches=20,
        fit_loop=types.SimpleNamespace(epoch_loop=types.SimpleNamespace(batch_idx=9)),
        sanity_checking=False,
        num_val_batches=[5],
    )

    for _ in range(4):
        clock.now += 7
        lines.on_train_batch_end(trainer)
    for number in range(3):
        clock.now += 7
        lines.on_validation_batch_end(trainer, None, None, None, number)

    assert caplog.messages == [
        "0:01:14 of 0:10:00  epoch 4 of ~14  loss 0.500",
        "0:01:28 of 0:10:00  epoch 4 of ~14  loss 0.500",
        "0:01:42 of 0:10:00  validation, batch 2 of 5",
    ]
