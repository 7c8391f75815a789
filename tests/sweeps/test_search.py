"""Sweeps whose jobs are played: they take their time on a clock of the test and write a score."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

import cocoseg.budget.budget
import cocoseg.sweeps.search
from cocoseg.budget.budget import Budget
from cocoseg.budget.ledger import read_ledger
from cocoseg.config import Config
from cocoseg.config_checks import convert
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.files import write_json
from cocoseg.run_folder import FAILED, FINISHED, LEDGER, OUTCOME, PRUNED, STOPPED, Outcome
from cocoseg.sweeps.search import open_sweep
from cocoseg.sweeps.study import open_storage

TOTAL = "00:00:10:02"
NOW = 1e6  # on the clock, which stands still
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


class Killed(BaseException):
    """Ends a sweep wherever it is."""


class Played:
    """A launcher whose jobs only move the clock of the sweep.

    Attributes:
        jobs: overrides of each job so far.
        rounds: trials of each round.
        given: limit that came with each round.
        end: outcome of a job; None writes none.
        share: share of its limit that a job takes.
        overrun: seconds that a job takes beyond that.
        kill_at: trial in the middle of which a kill ends the sweep and the jobs of its round, once.
        budget: time of the sweep.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs: list[dict[str, str]] = []
        self.rounds: list[list[int]] = []
        self.given: list[float | None] = []
        self.end: Callable[[dict[str, str]], Outcome | None] = score
        self.share, self.overrun = 1.0, 0.0
        self.kill_at: int | None = None
        self.budget: Budget

    def __call__(self, jobs: Sequence[Sequence[str]], first: int, limit: float | None) -> None:
        parsed = [dict(item.split("=", 1) for item in job) for job in jobs]
        self.rounds.append([int(job["sweep.trial"]) for job in parsed])
        self.given.append(limit)
        longest = max(self.play(job) for job in parsed)
        self.budget.began -= longest  # as if so much time had passed
        if self.kill_at in self.rounds[-1]:
            self.kill_at = None
            raise Killed

    def play(self, job: dict[str, str]) -> float:
        """Leave a job's folder as `train.py` does. Returns the seconds that it took."""
        self.jobs.append(job)
        folder = self.folder / job["hydra.sweep.subdir"]
        ledger = read_ledger(folder / LEDGER)
        used = ledger["used"] if ledger else 0.0
        (folder / OUTCOME).unlink(missing_ok=True)
        limit = seconds(job["trainer.max_time"]) if "trainer.max_time" in job else 60.0
        killed = self.kill_at in self.rounds[-1]
        takes = (limit - used) * (0.5 if killed else self.share)
        budget = Budget(limit, began=NOW, used_before=used + takes, finished=not killed)
        write_json(folder / LEDGER, budget.to_dict())
        if not killed and (outcome := self.end(job)):
            outcome.write(folder)
        return takes + self.overrun

    @property
    def limits(self) -> list[float]:
        return [seconds(job["trainer.max_time"]) for job in self.jobs]

    @property
    def numbers(self) -> list[int]:
        return [int(job["sweep.trial"]) for job in self.jobs]


def seconds(text: str) -> float:
    return parse_duration(text, key="x").total_seconds()


def score(job: dict[str, str]) -> Outcome:
    """Best where lr is 0.01."""
    miou = 0.5 - abs(float(job.get("optimizer.lr", 0.01)) - 0.01)
    return Outcome(FINISHED, miou=miou, epochs=1, steps=10)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played(tmp_path / "sweep")

    def opened(*arguments: Any, **named: Any) -> Budget:
        played.budget = Budget(*arguments, **{**named, "began": NOW})
        return played.budget

    monkeypatch.setattr(cocoseg.sweeps.search, "Budget", opened)
    monkeypatch.setattr(cocoseg.budget.budget, "now", lambda: NOW)
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    return played


def run(
    played: Played,
    *arguments: str,
    parallel: int = 1,
    max_time: Any = "00:06:00:00",
    until: str | None = None,
    **settings: Any,
) -> int:
    """Sweep the learning rate, unless an argument has a space of its own."""
    typed = [item.split("=", 1)[1] for item in arguments if item.startswith("trainer.max_time=")]
    trainer = {"max_time": typed[0] if typed else max_time}
    sweep = {"method": "random", **settings}
    config = convert({"sweep": sweep, "trainer": trainer, "budget": {"until": until}}, Config)
    sweep = open_sweep(
        config,
        played.folder,
        arguments if any("," in item for item in arguments) else [*arguments, LR],
        played,
        side_by_side=parallel,
        config_loader=None,
    )
    return sweep.run()


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=open_storage(folder))


# ---- one time limit: 596 s of TOTAL are for the rounds, and a second of each is not for its jobs


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_trials_share_the_time(played: Played, method: str):
    assert run(played, method=method, trials=12, total_time=TOTAL) == 0
    assert played.numbers == list(range(12))
    assert set(played.limits) == {48}  # 596 / 12 - 1
    assert played.given == [48] * 12
    assert played.budget.used() <= 596


def test_time_that_is_saved_buys_further_trials(played: Played):
    """Six of 98 s take 49 s each, so that five more begin before 596 s."""
    played.share = 0.5
    run(played, trials=6, total_time=TOTAL)
    assert played.limits == [98] * 11
    assert played.budget.used() <= 596


@pytest.mark.parametrize(
    ("overrun", "last"),
    [
        (2.0, ([94], [95])),  # each takes 101 s instead of 99, and 95 s are left to the last one
        (10.0, ([],)),  # too little is left
    ],
)
def test_a_last_trial_is_a_little_shorter_or_left_out(played: Played, overrun: float, last):
    played.overrun = overrun
    run(played, trials=6, total_time=TOTAL)
    assert played.limits[:5] == [98] * 5
    assert played.limits[5:] in last
    assert played.budget.used() <= 602


def test_a_sweep_ends_with_the_slurm_job(played: Played, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time() + 200)))
    run(played, "trainer.max_time=slurm", trials=3, pruner="none")
    assert played.limits[:3] == [63.0] * 3  # a third of 200 - END, less OVERHEAD
    assert read_ledger(played.folder / cocoseg.sweeps.search.LEDGER)["limit"] is None  # the sweep's own


@pytest.mark.parametrize(("seconds_left", "limits"), [(1000, [60, 60, 60]), (140, [60, 60])])
def test_trials_of_a_number_and_a_limit_end_by_a_moment(
    played: Played, monkeypatch: pytest.MonkeyPatch, seconds_left: int, limits: list[float]
):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time() + seconds_left)))
    run(played, "trainer.max_time=1m", trials=3, until="slurm")
    assert played.limits == limits


def test_a_moment_that_comes_too_soon_is_named(played: Played):
    with pytest.raises(CocosegError, match=r"^budget\.until or the Slurm job: 0\.0 s leave 0 s to each job"):
        run(played, trials=3, until="2026-01-01 00:00")


def test_the_number_of_trials_follows_from_their_time(played: Played):
    """Each has 50 s, the last one what is left: up to a tenth less."""
    run(played, "trainer.max_time=00:00:00:53", total_time=TOTAL)
    assert played.limits == [53] * 11
    assert played.budget.used() <= 596


def test_jobs_side_by_side_are_counted(played: Played):
    """An eighth trial fills the last round."""
    run(played, trials=7, total_time=TOTAL, parallel=2)
    assert played.rounds == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert set(played.limits) == {148}  # 596 / 4 - 1


def test_without_a_total_time_jobs_are_as_configured(played: Played):
    run(played, "trainer.max_time=00:00:01:00", trials=3, parallel=2)
    assert played.limits == [60, 60, 60]
    assert played.given == [None, None]
    assert all(job["resume"] == "auto" for job in played.jobs)


def test_a_deleted_limit_of_the_trials_follows_too(played: Played):
    """The override of the job must not be contradicted by the deletion."""
    run(played, "~trainer.max_time", trials=2, total_time="00:00:02:01", max_time=None)
    assert played.limits == [56, 56]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "give sweep.trials, or both"),
        ((), {"total_time": "00:01:00:00"}, "give sweep.trials, or both"),
        (("trainer.max_time=00:00:01:00",), {}, "give sweep.trials, or both"),
        (
            ("trainer.max_time=00:00:01:00",),
            {"trials": 3, "total_time": "00:01:00:00"},
            "give sweep.trials, or both",
        ),
        ((), {"trials": 100, "total_time": "00:00:01:00"}, "leave 0 s to each job"),
        (("trainer.max_time=00:00:01:00",), {"total_time": "00:00:00:10"}, "leave 3 s to each job"),
        ((), {"method": "grid"}, "can't list an interval"),
        (("seed=tag(ln,interval(1,2))",), {"trials": 2}, "tag ln is not known"),
        (("seed=1",), {"trials": 2, "space": {"model.depth": "3"}}, "model.depth has one value"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(played: Played, arguments, settings, message: str):
    with pytest.raises(CocosegError, match=message):
        run(played, *arguments, **settings)
    assert played.jobs == []
    assert not played.folder.exists()


# ---- overrides of jobs, and how jobs end


def test_a_job_has_the_overrides_of_the_command_and_of_its_point(played: Played):
    run(played, "data=shapes", "+callbacks.x=1", LR, "loss=a,b", trials=2, space={"model.depth": "2,3"})
    (job, _) = played.jobs
    assert (job["data"], job["+callbacks.x"]) == ("shapes", "1")
    assert 1e-4 <= float(job["optimizer.lr"]) <= 1e-1
    assert job["loss"] in "ab"
    assert job["model.depth"] in "23"
    assert job["sweep.name"] == played.folder.name


def test_optuna_knows_how_trials_ended(played: Played):
    ends = [
        Outcome(FINISHED, miou=0.5),
        Outcome(FAILED, "no"),
        Outcome(PRUNED, "poor", miou=0.1),
        None,
        Outcome(FINISHED),
    ]
    played.end = lambda job: ends[int(job["sweep.trial"])]
    assert run(played, trials=5) == 3
    states = [trial.state.name for trial in study(played.folder).trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "FAIL"]
    assert study(played.folder).best_value == 0.5


def test_a_sweep_in_which_all_fail_gives_up(played: Played):
    played.end = lambda job: Outcome(FAILED, "no")
    with pytest.raises(TrainingError, match="the first 5 trials have all failed"):
        run(played, trials=100)
    assert len(played.jobs) == 5


def test_a_sweep_in_which_one_succeeds_goes_on(played: Played):
    played.end = lambda job: score(job) if job["sweep.trial"] == "1" else Outcome(FAILED, "no")
    assert run(played, trials=8) == 7
    assert played.numbers == list(range(8))


def test_a_grid_in_which_all_fail_is_tried_to_its_end(played: Played):
    played.end = lambda job: Outcome(FAILED, "no")
    assert run(played, "seed=range(0,7)", method="grid") == 7


def test_a_grid_tries_all_points_once(played: Played):
    played.end = lambda job: Outcome(FAILED, "no") if job["seed"] == "1" else Outcome(FINISHED, miou=0.1)
    played.share = 0.5
    assert run(played, "seed=range(0,4)", "model.depth=2,3", method="grid", total_time=TOTAL) == 2
    points = [(job["seed"], job["model.depth"]) for job in played.jobs]
    assert points == [(seed, depth) for seed in "0123" for depth in "23"]
    assert set(played.limits) == {73}  # 596 / 8 - 1


def test_a_number_of_trials_cuts_a_grid(played: Played):
    run(played, "seed=range(0,4)", method="grid", trials=3)
    assert [job["seed"] for job in played.jobs] == ["0", "1", "2"]
    run(played, "seed=range(0,4)", method="grid")
    assert [job["seed"] for job in played.jobs] == ["0", "1", "2", "3"]


def test_the_same_seed_proposes_the_same(played: Played, tmp_path: Path):
    run(played, trials=3)
    first = [job["optimizer.lr"] for job in played.jobs]
    played.folder = tmp_path / "again"
    played.jobs.clear()
    run(played, trials=3)
    assert [job["optimizer.lr"] for job in played.jobs] == first
    assert len(set(first)) == 3


def test_tpe_learns_from_earlier_trials(played: Played):
    run(played, method="tpe", trials=40)
    late = [float(job["optimizer.lr"]) for job in played.jobs[-15:]]
    assert sum(0.003 < rate < 0.03 for rate in late) > 9


# ---- a sweep that was killed


def test_the_same_command_goes_on(played: Played):
    played.kill_at = 3
    with pytest.raises(Killed):
        run(played, trials=6, total_time=TOTAL)
    rates = [job["optimizer.lr"] for job in played.jobs]
    used = played.budget.used()

    assert run(played, trials=6, total_time=TOTAL) == 0
    assert played.numbers == [0, 1, 2, 3, 3, 4, 5]
    assert played.jobs[4]["optimizer.lr"] == rates[3]
    assert set(played.limits) == {98}  # in all: half of it was used before the kill
    assert played.budget.used_before == pytest.approx(used, abs=1)
    assert played.budget.used() <= 596
    assert len(study(played.folder).trials) == 6


def test_trials_side_by_side_go_on_together(played: Played):
    played.kill_at = 3
    with pytest.raises(Killed):
        run(played, trials=6, total_time=TOTAL, parallel=2)
    run(played, trials=6, total_time=TOTAL, parallel=2)
    assert played.rounds == [[0, 1], [2, 3], [2, 3], [4, 5]]


def test_a_trial_that_had_ended_is_not_repeated(played: Played):
    """The kill came between the end of the job and the record of the study."""
    played.kill_at = 1
    with pytest.raises(Killed):
        run(played, trials=3)
    Outcome(FINISHED, miou=0.75).write(played.folder / "1")
    run(played, trials=3)
    assert played.numbers == [0, 1, 2]
    assert study(played.folder).best_trial.number == 1


def test_a_stopped_trial_goes_on(played: Played):
    played.kill_at = 1
    with pytest.raises(Killed):
        run(played, trials=2)
    Outcome(STOPPED, "SIGTERM", miou=0.75).write(played.folder / "1")
    run(played, trials=2)
    assert played.numbers == [0, 1, 1]


def test_a_finished_sweep_stays_as_it_is_and_can_be_prolonged(played: Played):
    run(played, trials=2)
    run(played, trials=2)
    assert played.numbers == [0, 1]
    run(played, trials=3)
    assert played.numbers == [0, 1, 2]


def test_more_time_buys_further_trials_of_the_same_limit(played: Played):
    run(played, trials=2, total_time="00:00:01:41")
    run(played, trials=2, total_time="00:00:01:41")
    assert played.limits == [46, 46]
    run(played, trials=2, total_time="00:00:03:20")
    assert played.limits == [46, 46, 46, 46]
    assert played.budget.used() <= 194


def test_a_time_limit_that_a_sweep_did_not_begin_with(played: Played):
    """It follows from the time left. Sweeps of older versions are resumed in the same way."""
    run(played, trials=2)
    run(played, trials=4, total_time="00:00:05:01")
    assert played.numbers == [0, 1, 2, 3, 4, 5]
    assert played.given == [None, None, 42, 42, 42, 42]  # (301 - 6 - 2 * 60) / 4 - 1


def test_another_search_of_the_same_name_is_refused(played: Played):
    run(played, trials=1)
    with pytest.raises(CocosegError, match=r"choose another name by sweep\.name"):
        run(played, "seed=1,2", trials=1)
