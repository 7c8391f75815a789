import json
import os
from pathlib import Path
from typing import Any

import pytest

from cocoseg.budget.budget import Budget
from cocoseg.budget.open_run import best_beside, resume_budget
from cocoseg.config import BudgetConfig, Config
from cocoseg.durations import Duration
from cocoseg.errors import CocosegError
from cocoseg.run_folder import LEDGER


def make_run(folder: Path, *, used: float = 100.0, limit: float | None = 600.0, **more: object) -> Path:
    """A run folder with a ledger and a (hollow) checkpoint, which is returned."""
    (folder / "checkpoints").mkdir(parents=True)
    ledger = {**Budget(limit).to_dict(), "used": used, "trained_from": 5.0, **more}
    (folder / LEDGER).write_text(json.dumps(ledger))
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder / "checkpoints" / "last.ckpt"


def settings(max_time: str | None = "00:06:00:00", **more: Any) -> Config:
    return Config(trainer={"max_time": max_time}, **more)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_new_run(tmp_path: Path, resume: str | None) -> None:
    budget, checkpoint = resume_budget(settings(resume=resume), tmp_path, limit_is_typed=False)
    assert budget.limit == 6 * 3600
    assert budget.used_before == 0
    assert checkpoint is None


def test_auto_goes_on_in_the_same_folder(tmp_path: Path) -> None:
    last = make_run(tmp_path)
    config = settings(resume="auto")
    budget, checkpoint = resume_budget(config, tmp_path, limit_is_typed=False)
    assert checkpoint == str(last)
    assert budget.used_before == 100
    assert budget.limit == 600  # of the run, not of the configuration


def test_a_typed_limit_wins(tmp_path: Path) -> None:
    make_run(tmp_path)
    budget, _ = resume_budget(settings("00:01:00:00", resume="auto"), tmp_path, limit_is_typed=True)
    assert budget.limit == 3600
    assert budget.used_before == 100


def test_a_killed_run_without_a_checkpoint_is_charged_too(tmp_path: Path) -> None:
    make_run(tmp_path).unlink()
    config = settings(resume="auto")
    budget, checkpoint = resume_budget(config, tmp_path, limit_is_typed=False)
    assert checkpoint is None
    assert budget.used_before == 100


def test_another_folder_takes_the_time_of_the_run_that_it_goes_on_from(tmp_path: Path) -> None:
    last = make_run(tmp_path / "old")
    config = settings(ckpt_path=str(last))
    budget, _ = resume_budget(config, tmp_path / "new", limit_is_typed=False)
    assert (budget.used_before, budget.limit) == (100, 600)


def test_extend_adds_time(tmp_path: Path) -> None:
    make_run(tmp_path, used=600)
    config = settings(resume="auto", budget=BudgetConfig(extend=Duration(minutes=2)))
    budget, _ = resume_budget(config, tmp_path, limit_is_typed=False)
    assert budget.limit == 720
    assert not budget.is_spent()


@pytest.mark.parametrize(
    ("finished", "before", "expected"),
    [(True, 0, 720), (True, 120, 720), (False, 0, 720), (False, 120, 600), (False, 60, 720)],
)
def test_the_same_command_started_again_extends_once(
    tmp_path: Path, finished: bool, before: float, expected: float
) -> None:
    make_run(tmp_path, used=300, finished=finished, extended=before)
    config = settings(resume="auto", budget=BudgetConfig(extend=Duration(minutes=2)))
    budget, _ = resume_budget(config, tmp_path, limit_is_typed=False)
    assert budget.limit == expected
    assert budget.extended == 120
    assert not budget.finished


def test_auto_takes_the_checkpoint_written_last(tmp_path: Path) -> None:
    last = make_run(tmp_path)
    best = last.with_name("best.ckpt")
    best.write_bytes(b"")
    for path, seconds in ((last, 1000), (best, 2000)):
        os.utime(path, (seconds, seconds))
    config = settings(resume="auto")
    _, checkpoint = resume_budget(config, tmp_path, limit_is_typed=False)
    assert checkpoint == str(best)


def test_a_spent_budget_with_nothing_to_export(tmp_path: Path) -> None:
    make_run(tmp_path, used=600).unlink()
    with pytest.raises(CocosegError, match=r"0:10:00 of 0:10:00 are used.*budget\.extend"):
        resume_budget(settings(resume="auto"), tmp_path, limit_is_typed=False)


def test_no_limit_stays_no_limit(tmp_path: Path) -> None:
    make_run(tmp_path, limit=None)
    config = settings(resume="auto", budget=BudgetConfig(extend=Duration(minutes=2)))
    budget, _ = resume_budget(config, tmp_path, limit_is_typed=False)
    assert budget.limit is None


def test_the_best_beside(tmp_path: Path) -> None:
    last = make_run(tmp_path)
    assert best_beside(None) is None
    assert best_beside(str(last)) == last
    best = last.with_name("best.ckpt")
    best.touch()
    assert best_beside(str(last)) == best
