import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cocoseg import durations
from cocoseg.budget import budget as budget_module
from cocoseg.budget.budget import Budget
from cocoseg.budget.open_run import Run, best_beside, resume_budget
from cocoseg.config import BudgetConfig, Config
from cocoseg.durations import SLURM_END, Duration
from cocoseg.errors import CocosegError
from cocoseg.overrides import Command
from cocoseg.run_folder import LEDGER


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process begin now, and no time pass."""
    moment = datetime.fromisoformat("2026-11-27 12:00:00").timestamp()
    monkeypatch.setattr(time, "time", lambda: moment)
    monkeypatch.setattr(budget_module, "now", lambda: 1000.0)
    monkeypatch.setattr(durations, "now", lambda: 1000.0)
    monkeypatch.setattr(durations, "_began", 1000.0)


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


def test_extend_adds_to_the_limit_of_a_new_run_and_to_a_typed_one(tmp_path: Path) -> None:
    config = settings("10m", resume="auto", budget=BudgetConfig(extend=Duration(minutes=2)))
    assert opened(config, tmp_path, typed=True).limit == 720
    make_run(tmp_path, limit=720, extended=120.0, finished=True)
    assert opened(config, tmp_path, typed=True).limit == 720  # typed anew, so not 840


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


# ---- limits that Slurm or the clock on the wall sets


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch):
    """Let the process be a Slurm job that ends in so many seconds."""
    return lambda seconds: monkeypatch.setenv(SLURM_END, str(round(time.time() + seconds)))


def opened(config: Config, folder: Path, *, typed: bool = False) -> Budget:
    return resume_budget(config, folder, limit_is_typed=typed)[0]


def test_the_smaller_limit_holds(tmp_path: Path, slurm) -> None:
    slurm(1000)
    assert opened(settings("slurm"), tmp_path).left() == 1000
    until = BudgetConfig(until="slurm")
    assert opened(settings("5m", budget=until), tmp_path).limit == 300
    assert opened(settings("1h", budget=until), tmp_path).left() == 1000
    config = settings("slurm", budget=BudgetConfig(until="2026-11-27 12:06"))
    assert opened(config, tmp_path).left() == 360


def test_a_deadline_counts_anew_with_each_start(tmp_path: Path, slurm) -> None:
    slurm(1000)
    config = settings("1h", resume="auto", budget=BudgetConfig(until="slurm"))
    first = opened(config, tmp_path)
    make_run(tmp_path, **{**first.to_dict(), "used": 900.0})  # requeued, the job begins again
    slurm(2000)
    second = opened(config, tmp_path)
    assert (second.limit, second.left()) == (2900, 2000)
    slurm(5000)
    assert opened(config, tmp_path).limit == 3600  # of the run


@pytest.mark.parametrize("typed", [True, False])
def test_a_run_that_slurm_alone_limits_is_resumed(tmp_path: Path, slurm, typed: bool) -> None:
    slurm(1000)
    first = opened(settings("slurm"), tmp_path)
    make_run(tmp_path, **{**first.to_dict(), "used": 900.0})
    slurm(1000)
    again = opened(settings("slurm", resume="auto"), tmp_path, typed=typed)
    assert again.left() == 1000
    elsewhere = opened(settings("1h", resume="auto"), tmp_path)  # without Slurm it is not without end
    assert elsewhere.limit == 3600


def test_a_checkpoint_that_used_more_leaves_the_deadline_where_it_is(tmp_path: Path, slurm) -> None:
    slurm(1000)
    budget = opened(settings("slurm"), tmp_path)
    budget.resume({**budget.to_dict(), "used": 5000.0})
    assert budget.left() == 1000
    other = Budget(None)
    other.follow(budget.to_dict(), budget.deadline)
    assert other.left() == 1000


def test_other_ranks_follow_the_limit_that_holds(tmp_path: Path, slurm) -> None:
    slurm(1000)
    zero, other = opened(settings("1h", budget=BudgetConfig(until="slurm")), tmp_path), Budget(None)
    other.follow(zero.to_dict())
    assert other.left() == 1000


@pytest.mark.parametrize(
    ("seconds", "state"), [(1, "leaves too little time"), (-1, "has passed"), (-100_000, "has passed")]
)
def test_a_deadline_that_has_passed(tmp_path: Path, slurm, seconds: int, state: str) -> None:
    slurm(seconds)
    moment = f"{datetime.fromtimestamp(int(os.environ[SLURM_END])):%Y-%m-%d %H:%M}"
    with pytest.raises(CocosegError, match=f"Slurm job, {moment}, {state}: there is no checkpoint to export"):
        opened(settings("slurm"), tmp_path)
    last = make_run(tmp_path / "run")
    budget = opened(settings("slurm", ckpt_path=str(last)), tmp_path / "run")
    assert budget.is_spent()
    assert budget.to_dict()["ends"] >= 0  # as the ledger wants it


# ---- the command that resumes a run


def test_the_command_keeps_what_was_typed() -> None:
    typed = ("experiment=voc", "data.root=a b", "data.batch_size=9", "resume=auto")
    run = Run(Path("outputs/train/x"), command=Command(typed))
    assert str(run.resume_command()) == (
        "python train.py experiment=voc 'data.root=a b' data.batch_size=9 run_dir=outputs/train/x resume=auto"
    )
    assert str(run.resume_command("data.batch_size=4", "trainer.max_steps=1")) == (
        "python train.py experiment=voc 'data.root=a b' run_dir=outputs/train/x resume=auto "
        "data.batch_size=4 trainer.max_steps=1"
    )


def test_a_folder_stays_quoted_as_it_was_typed() -> None:
    run = Run(Path("my cöco").absolute(), command=Command(('run_dir="my cöco"', "resume=auto")))
    assert str(run.resume_command()) == """python train.py 'run_dir="my cöco"' resume=auto"""


def test_without_a_checkpoint_in_its_own_folder_the_earlier_one_is_needed(tmp_path: Path) -> None:
    typed = Command(("ckpt_path=runs/a/checkpoints/last.ckpt",))
    run = Run(tmp_path, checkpoint="runs/a/checkpoints/last.ckpt", command=typed)
    start = f"python train.py run_dir={tmp_path}"
    assert str(run.resume_command()) == f"{start} ckpt_path=runs/a/checkpoints/last.ckpt"
    make_run(tmp_path)
    assert str(run.resume_command()) == f"{start} resume=auto"


def test_the_best_beside(tmp_path: Path) -> None:
    last = make_run(tmp_path)
    assert best_beside(None) is None
    assert best_beside(str(last)) == last
    best = last.with_name("best.ckpt")
    best.touch()
    assert best_beside(str(last)) == best
