"""Sweeps whose jobs are played: they take their time on a clock of the test and leave a score."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import cocoseg.sweeping
from cocoseg.budget import LEDGER, Budget, read_ledger
from cocoseg.config import SweepConfig
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.files import write_json
from cocoseg.outcome import FAILED, FINISHED, OUTCOME, PRUNED, STOPPED, Outcome
from cocoseg.space import split
from cocoseg.study import Study
from cocoseg.sweeping import as_duration, sweep

LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


class Killed(BaseException):
    """Ends a sweep wherever it is."""


class Played:
    """A launcher. Attributes tell what it was asked to do.

    Args:
        ends: how each job ends, by its number; a good one with a score that its number gives by default.
        overrun: seconds that a job takes beyond its limit.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs: list[dict[str, str]] = []
        self.rounds: list[list[int]] = []
        self.ends: Callable[[dict[str, str]], Outcome | None] = lambda job: score(job)
        self.share = 1.0  # of its limit that a job takes
        self.overrun = 0.0
        self.kill_at: int | None = None  # the job that a kill interrupts half-way
        self.unsaved = False  # and before its first checkpoint
        self.budget: Budget  # of the sweep

    def __call__(self, jobs: Sequence[Sequence[str]], first: int) -> None:
        told = [dict(item.split("=", 1) for item in job) for job in jobs]
        self.rounds.append([int(job["sweep.trial"]) for job in told])
        longest = 0.0
        for job in told:
            self.jobs.append(job)
            folder = self.folder / job["hydra.sweep.subdir"]
            before = read_ledger(folder / LEDGER)
            used = before["used"] if before else 0.0
            (folder / OUTCOME).unlink(missing_ok=True)
            limit = seconds(job["trainer.max_time"]) if "trainer.max_time" in job else 60.0
            killed = self.kill_at == int(job["sweep.trial"])
            takes = (limit - used) * (0.5 if killed else self.share)
            longest = max(longest, takes + self.overrun)
            ledger = Budget(limit, used_before=used + takes, finished=not killed)
            if not (killed and self.unsaved):
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
                (folder / "checkpoints/last.ckpt").touch()
            write_json(folder / LEDGER, ledger.to_dict())
            if not killed and (outcome := self.ends(job)):
                outcome.write(folder)
        self.budget.began -= longest  # as if so much time had passed
        if self.kill_at in self.rounds[-1]:
            self.kill_at = None
            raise Killed

    @property
    def limits(self) -> list[float]:
        return [seconds(job["trainer.max_time"]) for job in self.jobs]

    @property
    def numbers(self) -> list[int]:
        return [int(job["sweep.trial"]) for job in self.jobs]


def seconds(text: str) -> float:
    return parse_duration(text, key="x").total_seconds()


def score(job: dict[str, str]) -> Outcome:
    """Best where lr is 0.01, and better after a longer time."""
    miou = 0.5 - abs(float(job.get("optimizer.lr", 0.01)) - 0.01)
    return Outcome(FINISHED, miou=miou, epochs=1, steps=10)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played(tmp_path)

    def opened(*arguments: Any, **named: Any) -> Budget:
        played.budget = Budget(*arguments, **{**named, "began": time.monotonic()})
        return played.budget

    monkeypatch.setattr(cocoseg.sweeping, "Budget", opened)
    monkeypatch.setattr(cocoseg.sweeping, "remember_failure", lambda *_: None)
    return played


def run(
    played: Played, *arguments: str, parallel: int = 1, max_time: Any = "00:06:00:00", **settings: Any
) -> int:
    """Sweep the learning rate unless told otherwise."""
    typed = [item.split("=", 1)[1] for item in arguments if item.startswith("trainer.max_time=")]
    return sweep(
        SweepConfig(**{"method": "random", **settings}),
        played.folder,
        arguments if any("," in item for item in arguments) else [*arguments, LR],
        played,
        parallel=parallel,
        seed=0,
        max_time=typed[0] if typed else max_time,
        resumable=True,
        config_loader=None,
    )


def study(folder: Path) -> optuna.Study:
    storage = cocoseg.study.open_storage(None, folder)
    return optuna.load_study(study_name=folder.name, storage=storage)


# ---- one time limit


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_trials_share_the_time(played: Played, method: str):
    assert run(played, method=method, trials=12, total_time="00:00:10:00") == 0
    assert played.numbers == list(range(12))
    assert 45 < min(played.limits) <= max(played.limits) <= 55  # they take a little less than they may
    assert 550 < played.budget.used() <= 594


def test_what_is_saved_goes_to_those_that_follow(played: Played):
    played.ends = lambda job: Outcome(FAILED, "no") if int(job["sweep.trial"]) < 3 else score(job)
    played.share = 0.5
    run(played, trials=6, total_time="00:00:10:00")
    assert played.limits[0] < 100
    assert played.limits == sorted(played.limits)
    assert played.limits[-1] > 150
    assert played.budget.used() <= 594


def test_what_is_overrun_is_taken_from_those_that_follow(played: Played):
    played.overrun = 10.0
    run(played, trials=6, total_time="00:00:10:00")
    assert played.limits[-1] < played.limits[0]
    assert played.budget.used() <= 610
    assert played.numbers == list(range(6))


def test_no_job_begins_that_would_come_too_late(played: Played):
    played.overrun = 200.0
    run(played, trials=6, total_time="00:00:10:00")
    assert len(played.jobs) < 6


def test_the_number_of_trials_follows_from_their_time(played: Played):
    run(played, "trainer.max_time=00:00:00:50", total_time="00:00:10:00")
    assert played.numbers == list(range(12))
    assert 44 <= min(played.limits) <= max(played.limits) <= 50
    assert played.budget.used() <= 594


def test_jobs_side_by_side_are_counted(played: Played):
    run(played, trials=7, total_time="00:00:10:00", parallel=2)
    assert played.rounds == [[0, 1], [2, 3], [4, 5], [6]]
    assert 140 < min(played.limits) <= max(played.limits) <= 150


def test_without_a_total_time_jobs_are_as_configured(played: Played):
    run(played, "trainer.max_time=00:00:01:00", trials=2)
    assert played.limits == [60, 60]
    assert all(job["resume"] == "auto" for job in played.jobs)


def test_a_time_that_was_left_out_follows_as_well(played: Played):
    """The job that is told of it must not leave it out, too."""
    run(played, "~trainer.max_time", trials=2, total_time="00:00:02:00", max_time=None)
    assert played.numbers == [0, 1]
    assert len(played.limits) == 2


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {}, "sweep.trials is not set"),
        ((), {"total_time": "00:01:00:00"}, "sweep.trials is not set"),
        (("trainer.max_time=00:00:01:00",), {}, "sweep.trials is not set"),
        (
            ("trainer.max_time=00:00:01:00",),
            {"trials": 3, "total_time": "00:01:00:00"},
            "trainer.max_time follows",
        ),
        ((), {"trials": 100, "total_time": "00:00:01:00"}, "leave 0 s to each job"),
        (("seed=1,2",), {"method": "grid", "trials": 2}, "a grid has as many as there are points"),
        ((), {"method": "grid"}, "can't list an interval"),
        (("seed=1",), {"trials": 2, "space": {"model.depth": "3"}}, "model.depth has one value"),
    ],
)
def test_contradictions(played: Played, arguments, settings, message: str):
    with pytest.raises(CocosegError, match=message):
        run(played, *arguments, **settings)
    assert played.jobs == []


def test_durations():
    assert as_duration(90061.9) == "01:01:01:01"
    assert parse_duration(as_duration(59.9), key="x").total_seconds() == 59


# ---- what jobs are told, and how they end


def test_jobs_are_told_what_was_typed_and_their_point(played: Played):
    run(played, "data=shapes", "+callbacks.x=1", LR, "loss=a,b", trials=2, space={"model.depth": "2,3"})
    (job, _) = played.jobs
    assert (job["data"], job["+callbacks.x"]) == ("shapes", "1")
    assert 1e-4 <= float(job["optimizer.lr"]) <= 1e-1
    assert job["loss"] in "ab"
    assert job["model.depth"] in "23"
    assert job["sweep.name"] == played.folder.name


def test_trials_are_told_to_optuna(played: Played):
    ends = [
        Outcome(FINISHED, miou=0.5),
        Outcome(FAILED, "no"),
        Outcome(PRUNED, "poor", miou=0.1),
        None,
        Outcome(FINISHED),
    ]
    played.ends = lambda job: ends[int(job["sweep.trial"])]
    assert run(played, trials=5) == 3
    states = [trial.state.name for trial in study(played.folder).trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "FAIL"]
    assert study(played.folder).best_value == 0.5


def test_a_sweep_in_which_all_fail_gives_up(played: Played):
    played.ends = lambda job: Outcome(FAILED, "no")
    with pytest.raises(TrainingError, match="the first 5 trials have all failed"):
        run(played, trials=100)
    assert len(played.jobs) == 5


def test_a_grid_tries_all_points(played: Played):
    played.ends = lambda job: Outcome(FAILED, "no") if job["seed"] == "1" else Outcome(FINISHED, miou=0.1)
    assert run(played, "seed=range(0,4)", "model.depth=2,3", method="grid", total_time="00:00:10:00") == 2
    points = [(job["seed"], job["model.depth"]) for job in played.jobs]
    assert points == [(seed, depth) for seed in "0123" for depth in "23"]
    assert played.budget.used() <= 594


def test_the_same_seed_proposes_the_same(played: Played, tmp_path_factory: pytest.TempPathFactory):
    run(played, trials=3)
    first = [job["optimizer.lr"] for job in played.jobs]
    played.folder = tmp_path_factory.mktemp("again")
    played.jobs.clear()
    run(played, trials=3)
    assert [job["optimizer.lr"] for job in played.jobs] == first
    assert len(set(first)) == 3


def test_tpe_learns_from_what_was_tried(played: Played):
    run(played, method="tpe", trials=40)
    late = [float(job["optimizer.lr"]) for job in played.jobs[-15:]]
    assert sum(0.003 < rate < 0.03 for rate in late) > 9


# ---- going on


def test_the_same_command_goes_on(played: Played):
    played.kill_at = 3
    with pytest.raises(Killed):
        run(played, trials=6, total_time="00:00:10:00")
    before = [job["optimizer.lr"] for job in played.jobs]
    (limit,) = (played.limits[3],)
    used = played.budget.used()

    assert run(played, trials=6, total_time="00:00:10:00") == 0
    assert played.numbers == [0, 1, 2, 3, 3, 4, 5]
    assert played.jobs[4]["optimizer.lr"] == before[3]
    assert played.limits[4] == pytest.approx(limit, abs=1)  # in all, of which half was used
    assert played.budget.used_before == pytest.approx(used, abs=1)
    assert played.budget.used() <= 594
    assert len(study(played.folder).trials) == 6


def test_what_a_kill_has_cost_much_begins_anew(played: Played):
    played.kill_at, played.unsaved = 3, True
    with pytest.raises(Killed):
        run(played, trials=6, total_time="00:00:10:00")
    (played.folder / "3/config.yaml").touch()
    run(played, trials=6, total_time="00:00:10:00")
    assert played.numbers == [0, 1, 2, 3, 3, 4, 5]
    assert not (played.folder / "3/config.yaml").exists()
    assert played.limits[4] == pytest.approx(played.limits[5], abs=2)
    assert played.budget.used() <= 594


def test_a_trial_that_had_ended_is_not_repeated(played: Played):
    """The kill came between the job's last word and the study's."""
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


def test_time_that_is_used_up(played: Played):
    run(played, "trainer.max_time=00:00:00:50", total_time="00:00:01:40")
    assert len(played.jobs) == 2
    run(played, "trainer.max_time=00:00:00:50", total_time="00:00:01:40")
    assert len(played.jobs) == 2
    run(played, "trainer.max_time=00:00:00:50", total_time="00:00:03:20")
    assert len(played.jobs) == 4


def test_another_search_of_the_same_name_is_refused(played: Played):
    run(played, trials=1)
    with pytest.raises(CocosegError, match=r"name this one by sweep\.name"):
        run(played, "seed=1,2", trials=1)


# ---- several processes


def make_study(folder: Path, method: str = "random", **named: Any) -> Study:
    overrides = OverridesParser.create().parse_overrides([LR if method != "grid" else "seed=1,2,3"])
    _, space = split(overrides, {})
    return Study(folder, "shared", named.get("storage"), method, space, seed=0)


@pytest.mark.parametrize("method", ["tpe", "random", "grid"])
@pytest.mark.parametrize("database", [False, True])
def test_processes_share_the_trials(tmp_path: Path, method: str, database: bool):
    storage = f"sqlite:///{tmp_path / 'trials.db'}" if database else None
    one, two = (make_study(tmp_path, method, storage=storage) for _ in range(2))
    trials = [study.next(3) for study in (one, two, one)]
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert len({str(trial.point) for trial in trials}) == 3
    assert one.next(3) is None
    assert two.next(3) is None
    two.tell(1, Outcome(FINISHED, miou=0.5))
    one.tell(0, Outcome(FINISHED, miou=0.25))
    assert one.best() == (1, 0.5)


def test_what_a_killed_process_left_is_taken_over_once(tmp_path: Path):
    one, two, three = (make_study(tmp_path) for _ in range(3))
    left = one.next(5)
    assert two.next(1) is None  # the other one lives
    one.close()
    assert two.left(1) == 1
    assert two.next(1) == left
    assert three.next(1) is None


def test_databases_that_can_not_be_opened(tmp_path: Path):
    with pytest.raises(CocosegError, match=r"sweep\.storage: sqlite:////nowhere/x\.db can't be opened"):
        make_study(tmp_path, storage="sqlite:////nowhere/x.db")
