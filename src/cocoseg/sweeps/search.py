"""Sweeps: Optuna proposes trials, Hydra composes and runs them in rounds, within one time limit. No torch.

All trials have the same limit, fixed when the sweep begins. Time that pruned or failed trials save buys
further trials.
"""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from cocoseg.budget.budget import Budget
from cocoseg.budget.ledger import keep_ledger, read_ledger
from cocoseg.config import Config, SweepConfig
from cocoseg.durations import STARTED, as_clock, as_duration, in_seconds
from cocoseg.errors import CocosegError, TrainingError, count_of
from cocoseg.files import from_here, locked
from cocoseg.overrides import key_of
from cocoseg.run_folder import FAILED, Outcome
from cocoseg.sweeps.space import split_overrides
from cocoseg.sweeps.study import JOURNAL, Study, Trial

log = logging.getLogger(__name__)

LEDGER = "sweep.json"  # time that all attempts at the sweep used
END = 6.0  # seconds for the leaderboard and to leave the process, on a busy machine
OVERHEAD = 1.0  # seconds that a round takes beyond its jobs' limit
SHORTEST = 10.0  # seconds in which a job can load torch, learn something and export
SQUEEZE = 0.9  # share of its limit that a last trial must get, where the sweep's end cuts it short
MAX_FAILURES = 5  # trials that fail, and none that succeeds, before a sweep gives up

# Overrides of each job, number of the first trial, limit of the longest job in seconds (None: as configured).
Launch = Callable[[Sequence[Sequence[str]], int, float | None], Any]


@dataclass
class Sweep:
    """A sweep in progress.

    Attributes:
        fixed: overrides that all jobs share.
        launch: runs jobs side by side and returns when all have ended.
        side_by_side: number of jobs at a time.
        budget: time of the whole sweep.
        limit: seconds of each trial; None: `trainer.max_time` as it is configured, or none.
        buys_more: time that is left buys further trials, beyond `sweep.trials`; a grid has none.
        failed, succeeded: number of trials that this process has tried.
    """

    settings: SweepConfig
    study: Study
    fixed: list[str]
    launch: Launch
    side_by_side: int
    budget: Budget
    limit: float | None
    buys_more: bool
    failed: int = 0
    succeeded: int = 0

    def run(self) -> int:
        """Try one round of trials after the other until all are done or the time is up.

        Returns:
            The number of trials that failed.

        Raises:
            TrainingError: all of the first trials have failed.
        """
        if started := self.study.started():
            log.info("%s: resumed with %s", from_here(self.study.sweep_dir), count_of(started, "trial"))
        interrupted = self.study.interrupted()
        for trial in interrupted:
            with locked(trial.folder, key="sweep.name"):
                pass  # the job of a sweep that was killed may still be saving
        with keep_ledger(self.study.sweep_dir / LEDGER, self.budget):
            while trials := self.next_round(interrupted):
                limits = [self.limit_of(trial) for trial in trials]
                jobs = [self.overrides(trial, limit) for trial, limit in zip(trials, limits, strict=True)]
                longest = max((limit for limit in limits if limit is not None), default=None)
                self.launch(jobs, trials[0].number, longest)
                for trial in trials:
                    self.record_end(trial, trial.outcome())
            self.budget.finished = True
        if self.budget.limit is not None:
            log.info("sweep: %s of %s", as_clock(self.budget.used()), as_clock(self.budget.limit))
        return self.failed

    def next_round(self, interrupted: list[Trial]) -> list[Trial]:
        """Start the trials that run side by side next: none where all are done or no further one fits in.

        Args:
            interrupted: trials of an earlier process; those that run next are taken out of it.
        """
        trials: list[Trial] = []
        while len(trials) < self.side_by_side:
            too_few = self.study.started() < (self.settings.trials or 0)
            if interrupted and self.fits(interrupted[0].used()):
                trials.append(interrupted.pop(0))
            elif (too_few or self.buys_more) and self.fits(0.0):
                trials.append(self.study.start_trial())
            else:
                if not trials and (too_few or interrupted):
                    log.info("no time is left for another trial")
                break
        return trials

    def fits(self, used: float) -> bool:
        """Tell whether a trial that has `used` seconds of its limit can end in time, or nearly so."""
        return self.limit is None or self.seconds_left() >= max(SHORTEST, SQUEEZE * self.limit - used)

    def limit_of(self, trial: Trial) -> float | None:
        """Seconds of a trial: a little less for the last ones, where the sweep's time ends before theirs."""
        return None if self.limit is None else min(self.limit, trial.used() + self.seconds_left())

    def seconds_left(self) -> float:
        """Seconds for the jobs of one round, if it were the last one; infinite without a limit."""
        return self.budget.left() - END - OVERHEAD

    def overrides(self, trial: Trial, limit: float | None) -> list[str]:
        """Overrides of a trial's job.

        Args:
            limit: seconds, those that earlier attempts used included.
        """
        own = {
            **trial.point,
            "sweep.name": self.settings.name,
            "sweep.trial": trial.number,
            "hydra.sweep.subdir": trial.number,
        }
        if limit is not None:
            own["trainer.max_time"] = as_duration(limit)
        keys = set(map(key_of, own))
        shared = [override for override in self.fixed if key_of(override) not in keys]
        return shared + [f"{key}={value}" for key, value in own.items()]

    def record_end(self, trial: Trial, outcome: Outcome) -> None:
        """Record and log how a trial has ended; give up where all of the first ones have failed."""
        self.study.record(trial, outcome)
        point = " ".join(f"{key}={value}" for key, value in trial.point.items())
        if outcome.state != FAILED:
            self.succeeded += 1
            result = outcome.reason or f"mIoU {outcome.miou:.3f}"
            log.info("trial %d %s: %s  %s", trial.number, outcome.state, result, point)
            return
        self.failed += 1
        if outcome != Outcome.read(trial.folder):  # its job ended as no trial may
            outcome.write(trial.folder)
        log.info("trial %d failed: %s", trial.number, outcome.reason)
        if self.failed >= MAX_FAILURES and not self.succeeded and self.settings.method != "grid":
            raise TrainingError(f"sweep: the first {self.failed} trials have all failed")


def open_sweep(
    config: Config,
    sweep_dir: Path,
    arguments: Sequence[str],
    launch: Launch,
    *,
    side_by_side: int,
    config_loader: Any,
) -> Sweep:
    """Check all settings of a sweep, and only then open its study, or the one of an earlier attempt.

    Args:
        sweep_dir: folder of the sweep, which this process owns; trial n runs in its subfolder n.
        arguments: overrides of the command line.
        launch, side_by_side: see `Sweep`.
        config_loader: Hydra's, which knows the options of a group.

    Raises:
        CocosegError: the settings contradict each other, or the time does not suffice.
    """
    settings = config.sweep
    parser = OverridesParser.create(config_loader=config_loader)
    overrides = parser.parse_overrides(list(arguments))
    extra = parser.parse_overrides([f"{key}={value}" for key, value in settings.space.items()])
    fixed, space = split_overrides(overrides, extra)
    budget = Budget(in_seconds(settings.total_time), began=STARTED)
    budget.resume(read_ledger(sweep_dir / LEDGER))
    budget.end_by(config.deadline)
    max_time = in_seconds(config.time_limit)
    if not any(override.key_or_group == "trainer.max_time" for override in overrides):
        max_time = None  # a preset's
    # If both sweep.trials and trainer.max_time are given, budget.until only stops the sweep.
    buys_more = budget.limit is not None and settings.method != "grid" and None in (settings.trials, max_time)
    total_time = budget.limit if settings.trials is None else settings.total_time
    if settings.method == "grid":
        settings.trials = min(settings.trials or sys.maxsize, len(space.grid()))
    elif (settings.trials is None) != (total_time is not None and max_time is not None):
        raise CocosegError(
            "sweep: give sweep.trials, or both sweep.total_time and trainer.max_time, but not all three"
        )
    settings.name = settings.name or sweep_dir.name
    rounds = 1 if max_time else math.ceil((settings.trials or 1) / side_by_side)  # all must fit
    limit = limit_of_trials(budget, rounds, max_time, is_new=not (sweep_dir / JOURNAL).exists())

    sweep_dir.mkdir(parents=True, exist_ok=True)
    study = Study(sweep_dir, settings.name, settings.method, space, config.seed)
    limit = study.fix_limit(limit)
    if config.ckpt_path is None:
        fixed.append("resume=auto")
    return Sweep(settings, study, fixed, launch, side_by_side, budget, limit, buys_more)


def limit_of_trials(budget: Budget, rounds: int, max_time: float | None, *, is_new: bool) -> float | None:
    """Seconds of each trial: at most `max_time`, and so few that all rounds fit into the sweep's time.

    Raises:
        CocosegError: a new sweep has too little time.
    """
    if budget.limit is None:
        return None
    limit = math.floor(min(max_time or math.inf, (budget.left() - END) / rounds - OVERHEAD))
    if limit < SHORTEST and is_new:
        key = "sweep.total_time" if budget.limit == budget.run_limit else "budget.until or the Slurm job"
        raise CocosegError(
            f"{key}: {as_clock(budget.limit)} leave {max(0, limit):.0f} s to each job, which needs "
            f"at least {SHORTEST:.0f} s; set fewer sweep.trials or more time"
        )
    return max(SHORTEST, limit)
