"""Sweeps: Hydra composes the jobs, Optuna proposes them, and all of them fit one time limit. No torch.

With `sweep.total_time` every round of jobs (as many as run side by side) gets its share of the time that is
left then, so that what earlier ones overran or saved is taken from or given to those that follow.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from cocoseg.budget import LEDGER, Budget, clock, kept_in, process_age, read_ledger
from cocoseg.cli import remember_failure
from cocoseg.config import SweepConfig
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.files import from_here
from cocoseg.outcome import FAILED, FINISHED, PRUNED, STOPPED, Outcome
from cocoseg.space import Space, split
from cocoseg.study import Study, Trial

log = logging.getLogger(__name__)

LEDGER_OF_ALL = "sweep.json"
END = 6.0  # seconds for the leaderboard and to leave the process, on a busy machine
LOST = 0.1  # of a trial's time: where a kill has cost more, it is begun anew
BETWEEN = 1.0  # seconds that a job takes beyond its limit, as long as none has been seen
SHORTEST = 10.0  # seconds in which a job can learn something
SQUEEZE = 0.9  # of trainer.max_time that a job gets at least
HOPELESS = 5  # trials that fail, and nothing else, before a sweep gives up

Launch = Callable[[Sequence[Sequence[str]], int], Any]  # overrides of each job, number of the first


@dataclass
class Sweep:
    """A sweep in progress.

    Args:
        settings: of the sweep.
        study: its trials.
        fixed: overrides that all jobs share.
        launch: runs jobs side by side and returns when all have ended.
        parallel: how many those are.
        budget: of the whole sweep.
        job_limit: seconds of `trainer.max_time`; None where it has none.
        resumable: jobs may go on where an earlier attempt stood.
    """

    settings: SweepConfig
    study: Study
    fixed: list[str]
    launch: Launch
    parallel: int
    budget: Budget
    job_limit: float | None
    resumable: bool = True
    between: float = BETWEEN
    failed: int = 0
    succeeded: int = 0

    def run(self) -> None:
        """Try one round of trials after the other until all are done or the time is up."""
        while True:
            left = self.study.left(self.settings.trials)
            if left <= 0:
                return
            seconds = self.seconds_of_round(left)
            if seconds is not None and seconds < SHORTEST:
                log.info("no time is left for another trial")
                return
            trials: list[Trial] = []
            while len(trials) < min(left, self.parallel):
                if (trial := self.study.next(self.settings.trials)) is None:
                    break
                trials.append(trial)
            if not trials:
                return
            for trial, outcome in self.try_all(trials, [seconds] * len(trials)):
                self.study.tell(trial.number, outcome)
                self.report(trial, outcome)

    def seconds_of_round(self, left: float) -> float | None:
        """How long the jobs of the next round may take; None for as long as they are configured to."""
        if self.budget.limit is None:
            return None
        if self.settings.trials is None and self.study.method != "grid":
            # As many rounds as fit, a little shorter than asked for where one more fits then.
            rounds = math.floor(self.time_left() / (SQUEEZE * self.job_limit + self.between))
            return min(self.job_limit, self.share(1, rounds)) if rounds > 0 else 0.0
        return self.share(1, math.ceil(left / self.parallel))

    def time_left(self) -> float:
        return self.budget.left() - END

    def share(self, weight: float, of: float) -> float:
        """Seconds for the jobs of a round, of all the time that is left, by their weight."""
        return self.time_left() * weight / of - self.between

    def try_all(
        self, trials: Sequence[Trial], seconds: Sequence[float | None]
    ) -> list[tuple[Trial, Outcome]]:
        """Run trials side by side, and see how each ended.

        Args:
            trials: no more than run side by side.
            seconds: that each may take from now on; what it took earlier is not counted.
        """
        jobs = [self.overrides(trial, limit) for trial, limit in zip(trials, seconds, strict=True)]
        began = time.monotonic()
        self.launch(jobs, trials[0].number)
        granted = max((limit for limit in seconds if limit is not None), default=None)
        if granted is not None:
            self.between = max(self.between, time.monotonic() - began - granted)
        return [(trial, self.outcome(trial)) for trial in trials]

    def overrides(self, trial: Trial, seconds: float | None) -> list[str]:
        """The command line of a trial's job, which goes on where an earlier attempt stood.

        Where a kill has cost that one much of its time, it would be judged by what the others have done in
        all of theirs: then it begins anew.
        """
        ledger = self.ledger(trial)
        lost = ledger is not None and self.has_lost(trial, ledger)
        if lost:
            shutil.rmtree(self.study.folder(trial.number))
            ledger = None
        added = {
            "sweep.name": self.settings.name,
            "sweep.trial": trial.number,
            "hydra.sweep.subdir": trial.number,
        }
        if self.resumable:
            added["resume"] = "auto"
        if seconds is not None:
            if ledger is not None and not ledger["finished"] and ledger["limit"] is not None:
                seconds = min(seconds, ledger["limit"] - ledger["used"])  # it was stopped half-way
            used = 0.0 if ledger is None else ledger["used"]
            added["trainer.max_time"] = as_duration(used + seconds)
        own = {**trial.point, **{key: str(value) for key, value in added.items()}}
        kept = [item for item in self.fixed if item.removeprefix("~").split("=")[0] not in own]
        return kept + [f"{key}={value}" for key, value in own.items()]

    def ledger(self, trial: Trial) -> dict[str, Any] | None:
        """The time that earlier attempts at a trial took."""
        return read_ledger(self.study.folder(trial.number) / LEDGER)

    def has_lost(self, trial: Trial, ledger: dict[str, Any]) -> bool:
        """Whether a kill has cost an attempt so much since its last checkpoint."""
        folder = self.study.folder(trial.number)
        if ledger["finished"] or Outcome.read(folder) is not None:
            return False
        saved = [file.stat().st_mtime for file in folder.glob("checkpoints/*.ckpt")]
        since = (folder / LEDGER).stat().st_mtime - max(saved) if saved else ledger["used"]
        return since > LOST * (ledger["limit"] or ledger["used"])

    def outcome(self, trial: Trial) -> Outcome:
        outcome = Outcome.read(self.study.folder(trial.number))
        if outcome is None:
            outcome = Outcome(FAILED, "ended without a word; its log may tell")
        if outcome.state == STOPPED:  # that job alone, by somebody's hand
            outcome = Outcome(FAILED, f"stopped ({outcome.reason})", outcome.miou)
        if outcome.state == FINISHED and outcome.miou is None:
            outcome = Outcome(FAILED, "there was no validation, and so no score")
        return outcome

    def report(self, trial: Trial, outcome: Outcome) -> None:
        """A line about a trial that has ended.

        Raises:
            TrainingError: all of the first ones have failed.
        """
        point = " ".join(f"{key}={value}" for key, value in trial.point.items())
        if outcome.state == FAILED:
            remember_failure(trial.number, f"job {trial.number} ({point})", outcome.reason)
            log.info("trial %d failed: %s", trial.number, outcome.reason)
            self.failed += 1
            if self.failed >= HOPELESS and not self.succeeded and self.study.method != "grid":
                raise TrainingError(f"sweep: the first {self.failed} trials have all failed")
            return
        self.succeeded += 1
        best = self.study.best()
        compared = "" if best is None else f" (best {best[1]:.3f}, trial {best[0]})"
        verb = "pruned at" if outcome.state == PRUNED else "has"
        log.info("trial %d %s mIoU %.3f%s  %s", trial.number, verb, outcome.miou or 0.0, compared, point)


def sweep(
    settings: SweepConfig,
    sweep_dir: Path,
    arguments: Sequence[str],
    launch: Launch,
    *,
    parallel: int,
    seed: int,
    max_time: Any,
    resumable: bool,
    config_loader: Any,
) -> int:
    """Begin a sweep, or go on with it, until its trials are done or its time is up.

    Args:
        settings: of the sweep.
        sweep_dir: its folder; trial n runs in the folder n below it.
        arguments: overrides of the command line.
        launch: see `Sweep`.
        parallel: jobs that it runs side by side.
        seed: of what is proposed.
        max_time: `trainer.max_time` as it is configured.
        resumable: see `Sweep`.
        config_loader: Hydra's, which knows the options of a group.

    Returns:
        how many trials have failed.

    Raises:
        CocosegError: the settings contradict each other, or the time does not suffice.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    listed = [f"{key}={value}" for key, value in settings.space.items()]
    extra = {one.get_key_element(): one for one in parser.parse_overrides(listed)}
    overrides: list[Override] = parser.parse_overrides(list(arguments))
    fixed, space = split(overrides, extra)
    total = parse_duration(settings.total_time, key="sweep.total_time")
    typed = any(one.key_or_group == "trainer.max_time" and not one.is_delete() for one in overrides)
    limit = parse_duration(max_time, key="trainer.max_time")
    require_one(settings, space, has_total=total is not None, max_time_typed=typed)
    settings.name = settings.name or sweep_dir.name

    budget = Budget(total and total.total_seconds(), began=time.monotonic() - process_age())
    budget.resume(read_ledger(sweep_dir / LEDGER_OF_ALL))
    study = Study(sweep_dir, settings.name, settings.storage, settings.method, space, seed)
    with closing(study), kept_in(sweep_dir / LEDGER_OF_ALL, budget):
        running = Sweep(
            settings, study, fixed, launch, parallel, budget, limit and limit.total_seconds(), resumable
        )
        if study.trials():
            log.info("%s: going on with %d trials", from_here(sweep_dir), len(study.trials()))
        require_time(running)
        running.run()
        budget.finished = True
    best = study.best()
    if best is not None:
        log.info("best: trial %d with mIoU %.3f, %s", best[0], best[1], from_here(study.folder(best[0])))
    if budget.limit is not None:
        log.info("sweep: %s of %s", clock(budget.used()), clock(budget.limit))
    return running.failed


def require_one(settings: SweepConfig, space: Space, *, has_total: bool, max_time_typed: bool) -> None:
    """Raises CocosegError where not exactly one of the number of trials and the time of each is open."""
    method, trials = settings.method, settings.trials
    if method == "grid":
        if trials is not None:
            raise CocosegError("sweep.trials: a grid has as many as there are points; leave it out")
        trials = len(space.grid())
    elif trials is None and not (has_total and max_time_typed):
        raise CocosegError(
            "sweep.trials is not set; or give sweep.total_time and trainer.max_time, from which it follows"
        )
    if has_total and trials is not None and max_time_typed:
        raise CocosegError(
            "sweep.total_time: with a number of trials, trainer.max_time follows from it; leave one out"
        )


def require_time(sweep: Sweep) -> None:
    """Raises CocosegError where not even the first round has time to learn something."""
    left = sweep.study.left(sweep.settings.trials)
    if sweep.budget.limit is None or left <= 0:
        return
    if sweep.time_left() < SHORTEST and sweep.study.trials():
        log.info("%s of %s are used", clock(sweep.budget.used()), clock(sweep.budget.limit))
        return
    if sweep.study.trials():
        return  # what is left of an earlier attempt is used as far as it goes
    seconds = sweep.seconds_of_round(left)
    if seconds is not None and seconds < SHORTEST:
        raise CocosegError(
            f"sweep.total_time: {clock(sweep.budget.limit)} leave {max(0, seconds):.0f} s to each job; they "
            f"need {SHORTEST:.0f} s at least: fewer trials, or more time"
        )


def as_duration(seconds: float) -> str:
    """As `trainer.max_time` is written, in whole seconds."""
    whole = timedelta(seconds=max(1, math.floor(seconds)))
    hours, rest = divmod(whole.seconds, 3600)
    return f"{whole.days:02d}:{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"
