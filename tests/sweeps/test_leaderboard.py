"""Tables of runs, read from their folders."""

import csv
import json
import os
import time
from pathlib import Path

import pytest

from cocoseg.budget.budget import Budget
from cocoseg.commands.leaderboard import main
from cocoseg.files import write_json
from cocoseg.run_folder import FAILED, FINISHED, LEDGER, STOPPED, Outcome
from cocoseg.sweeps.leaderboard import as_text, read_rows


def make_run(folder: Path, *overrides: str, finished: bool | None = None, miou=None) -> Path:
    """A run folder as `train.py` leaves it, as far as tables need it; a refused job has no ledger."""
    (folder / ".hydra").mkdir(parents=True)
    lines = [f"- {override}\n" for override in overrides] or ["[]\n"]
    (folder / ".hydra" / "overrides.yaml").write_text("".join(lines))
    if finished is not None:
        (folder / "config.yaml").write_text("program: train\nseed: 0\n")
        write_json(folder / LEDGER, {**Budget(60.0, finished=finished).to_dict(), "used": 30.0})
    if miou is not None:
        write_json(folder / "metrics.json", {"miou": miou})
    return folder


def age(folder: Path) -> None:
    """As if nothing had been written there for an hour."""
    before = time.time() - 3600
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (before, before))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A run of each kind."""
    always = "data=shapes"
    run = make_run(tmp_path / "0", always, "optimizer.lr=0.001", finished=True)
    Outcome(FINISHED, miou=0.25, epochs=4, steps=40).write(run)
    run = make_run(tmp_path / "1", always, "optimizer.lr=-1")
    Outcome(FAILED, "optimizer: Invalid learning rate: -1").write(run)
    run = make_run(tmp_path / "2", always, "optimizer.lr=0.01", finished=False, miou=0.5)
    Outcome(STOPPED, "SIGTERM", miou=0.5, epochs=2, steps=20).write(run)
    age(make_run(tmp_path / "3", always, "optimizer.lr=0.1", finished=False, miou=0.125))
    make_run(tmp_path / "10", always, "optimizer.lr=0.2", finished=False)
    evaluation = make_run(tmp_path / "evaluation", always)
    (evaluation / "config.yaml").write_text("program: evaluate\n")
    Outcome(FAILED, "no").write(evaluation)
    return tmp_path


def test_runs_are_sorted_and_have_states(sweep: Path):
    rows = read_rows(sweep)
    assert [row["job"] for row in rows] == ["2", "0", "3", "1", "10"]
    states = {row["job"]: (row["state"], row["reason"]) for row in rows}
    assert states == {
        "0": ("finished", ""),
        "1": ("failed", "optimizer: Invalid learning rate: -1"),
        "2": ("stopped", "SIGTERM"),
        "3": ("stopped", "killed"),
        "10": ("running", ""),
    }
    assert [row["miou"] for row in rows] == [0.5, 0.25, 0.125, None, None]
    assert [row["epochs"] for row in rows] == [2, 4, None, None, None]
    assert rows[0]["seconds"] == 30


def test_only_settings_that_differ_are_shown(sweep: Path):
    text = as_text(read_rows(sweep)).splitlines()
    assert text[0].split() == ["job", "mIoU", "epochs", "time", "state", "optimizer.lr"]
    assert text[1].split() == ["2", "0.500", "2", "30.0", "s", "stopped", "0.01", "SIGTERM"]
    assert "data=shapes" not in "".join(text)


def test_what_a_sweeper_adds_is_no_setting(tmp_path: Path):
    for number, seconds in enumerate(("50", "49")):
        added = (f"sweep.trial={number}", "resume=auto", f"trainer.max_time=00:00:00:{seconds}")
        make_run(tmp_path / str(number), f"seed={number}", *added, finished=True)
    assert list(read_rows(tmp_path)[0])[6:] == ["seed"]


def test_swept_time_limits_are_settings(tmp_path: Path):
    for number in range(2):
        make_run(tmp_path / str(number), f"trainer.max_time=00:00:0{number + 1}:00", finished=True)
    assert list(read_rows(tmp_path)[0])[6:] == ["trainer.max_time"]


def test_the_table_is_written_into_the_folder(sweep: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(sweep)]) == 0
    *_, table, longer = capsys.readouterr().out.splitlines()
    assert table == f"leaderboard  {sweep}/leaderboard.csv"
    assert longer == f"train it longer: python train.py from_run={sweep}/2 trainer.max_time=6h"
    with (sweep / "leaderboard.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5
    assert list(lines[0])[:6] == ["job", "miou", "epochs", "seconds", "state", "reason"]
    assert lines[0]["miou"] == "0.5"
    assert lines[0]["optimizer.lr"] == "0.01"
    assert [line["state"] for line in lines].count("failed") == 1
    assert lines[3]["reason"] == "optimizer: Invalid learning rate: -1"
    assert read_rows(sweep)[0]["job"] == "2"  # the table is no run


def test_damaged_files_are_passed_over(tmp_path: Path):
    run = make_run(tmp_path / "0", "seed=1", finished=True)
    for name in ("outcome.json", LEDGER, "metrics.json"):
        (run / name).write_text("{")
    (run / ".hydra" / "overrides.yaml").write_text("- [")
    age(run)
    (row,) = read_rows(tmp_path)
    assert (row["state"], row["miou"], row["seconds"]) == ("stopped", None, None)


ODD = {
    "outcome.json": [
        "[" * 100_000,
        '{"state": "finished", "miou": 1e999}',
        '{"state": "ended", "miou": "NaN"}',
        "\\x00",
    ],
    LEDGER: ["[" * 100_000, '{"limit": 1, "used": NaN}', '{"limit": 5, "used": 1e300}'],
    "metrics.json": ['{"miou": "nan"}', '{"miou": 1' + "0" * 400 + "}", "[" * 100_000],
    ".hydra/overrides.yaml": ["a: 1", "3", "- [1]\n- {a: 1}\n- 2\n- null", "[" * 100_000, "\\x00"],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in ODD.items() for text in texts])
def test_odd_files_end_nothing(tmp_path: Path, name: str, content: str):
    run = make_run(tmp_path / "0", "seed=1", finished=True, miou=0.5)
    (run / name).write_text(content)
    make_run(tmp_path / "1", "seed=2", finished=True)
    assert main([str(tmp_path)]) == 0


def test_overrides_are_shown_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "hidden")
    typed = "data.root=${oc.env:SECRET}", "optimizer.lr=${nowhere}", "optimizer.weight_decay=-1e-3"
    make_run(tmp_path / "0", *typed, finished=True)
    make_run(tmp_path / "1", finished=True)
    row = next(row for row in read_rows(tmp_path) if row["job"] == "0")
    assert (row["data.root"], row["optimizer.lr"]) == ("${oc.env:SECRET}", "${nowhere}")
    assert main([str(tmp_path)]) == 0
    with (tmp_path / "leaderboard.csv").open() as file:
        assert next(csv.DictReader(file))["optimizer.weight_decay"] == "-1e-3"


def test_aliases_are_not_unfolded(tmp_path: Path):
    run = make_run(tmp_path / "0", finished=True)
    lines = ["- &a0 [x, x]\n", *(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))]
    (run / ".hydra/overrides.yaml").write_text("".join(lines))
    assert read_rows(tmp_path)[0]["job"] == "0"


def test_names_from_files_neither_steer_a_terminal_nor_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    evil = "\x1b[2Jred\nnext\u202e"
    run = make_run(tmp_path / "=1+1", finished=True)
    make_run(tmp_path / "1", finished=True)
    (run / ".hydra/overrides.yaml").write_text(json.dumps([f"{evil}={evil}", "@a==cmd|' /C calc'!A0"]))
    Outcome(FAILED, f"@{evil}").write(run)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out + (tmp_path / "leaderboard.csv").read_text()
    assert not {"\x1b", "\u202e"} & set(shown)
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 3
    for row in rows:
        assert not any(cell.startswith(("=", "@")) for cell in row), row
    assert "'=1+1" in rows[1] + rows[2]


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_trainings(tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / folder)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path / folder}: no folder with trainings\n"
