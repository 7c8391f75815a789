"""The rounds of a sweep: jobs that run side by side, one round after the other, in one time limit. No torch.

All trials have the same limit, fixed when the sweep begins (`plan_limit`). Time that pruned or failed trials
save buys further trials.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocoseg.budget.budget import Budget
from cocoseg.budget.ledger import read_ledger
from cocoseg.cli import remember_failure
from cocoseg.config import SweepConfig
from cocoseg.durations import as_duration, clock
from cocoseg.errors import TrainingError
from cocoseg.files import from_here, locked
from cocoseg.overrides import key_of
from cocoseg.run_folder import FAILED, FINISHED, LEDGER, PRUNED, STOPPED, Outcome
from cocoseg.sweeps.study import Study, Trial

log = logging.getLogger(__name__)

END = 6.0  # seconds for the leaderboard and to leave the process, on a busy machine
OVERHEAD = 1.0  # seconds that a round takes beyond its jobs' limit, as long as none has been measured
SHORTEST = 10.0  # seconds in which a job can load torch, learn something and export
SQUEEZE = 0.9  # least share of the limit that a trial gets where the sweep's time ends before
LOST = 0.1  # share of a trial's limit: a trial to which a kill has cost more is restarted
MAX_FAILURES = 5  # trials that fail, and none that succeeds, before a sweep gives up

# Overrides of each job, number of the first trial, limit of the longest job in seconds (None: as configured).
Launch = Callable[[Sequence[Sequence[str]], int, float | None], Any]


def plan_limit(seconds: float, parallel: int, trials: int | None, max_time: float | None) -> float:
    """Seconds for each trial of a sweep, so that all of them fit.

    Args:
        seconds: time for all rounds.
        parallel: trials per round.
        trials: number of trials; None where it follows from `max_time`.
        max_time: seconds of each trial, used where `trials` is None.
    """
    if trials is None:
        return math.floor(min(max_time, seconds - OVERHEAD))
    return math.floor(seconds / math.ceil(trials / parallel) - OVERHEAD)


@dataclass
class Sweep:
    """A sweep in progress.

    Attributes:
        fixed: overrides that all jobs share.
        launch: runs jobs side by side and returns when all have ended.
        parallel: number of jobs side by side.
        budget: time of the whole sweep.
        limit: seconds of each trial; None: `trainer.max_time` as it is configured, or none.
        overhead: seconds that a round takes beyond its jobs' limit.
        interrupted: trials of an earlier process that are still to be resumed.
    """

    settings: SweepConfig
    study: Study
    fixed: list[str]
    launch: Launch
    parallel: int
    budget: Budget
    limit: float | None
    overhead: float = OVERHEAD
    failed: int = 0
    succeeded: int = 0
    interrupted: list[Trial] = field(default_factory=list)

    def run(self) -> None:
        """Try one round of trials after the other until all are done or the time is up."""
        self.interrupted = self.study.interrupted()
        for trial in self.interrupted:
            reset_if_lost(self.study.folder(trial.number))
        while trials := self.next_round():
            self.run_round(trials)
            for trial in trials:
                outcome = read_outcome(self.study.folder(trial.number))
                self.study.record(trial.number, outcome)
                self.report(trial, outcome)

    def next_round(self) -> list[Trial]:
        """Trials that run side by side now: those that were interrupted first, then new ones.

        Empty where all are done, or no further one fits into the time left.
        """
        trials: list[Trial] = []
        while len(trials) < self.parallel:
            if self.interrupted and self.fits(self.used(self.interrupted[0])):
                trials.append(self.interrupted.pop(0))
            elif self.wants_another() and self.fits(0.0):
                trials.append(self.study.start_trial())
            else:
                break
        if not trials and (self.interrupted or self.trials_left()):
            log.info("no time is left for another trial")
        return trials

    def trials_left(self) -> int:
        """Number of trials that were asked for and have not started."""
        return max(0, (self.settings.trials or 0) - self.study.started())

    def wants_another(self) -> bool:
        """Whether a further trial is wanted, if it fits: with a limit for the sweep as many as do."""
        buys_more = self.budget.limit is not None and self.study.method != "grid"
        return buys_more or self.trials_left() > 0

    def fits(self, used: float) -> bool:
        """Whether a trial that has used so many seconds of its limit can end in time, or nearly so."""
        return self.limit is None or self.seconds_left() >= max(SHORTEST, SQUEEZE * self.limit - used)

    def seconds_left(self) -> float:
        """Seconds for the jobs of one round, if it were the last one; infinite without a limit."""
        return self.budget.left() - END - self.overhead

    def run_round(self, trials: Sequence[Trial]) -> None:
        """Run trials side by side, and measure how much longer than their limit that takes."""
        first = trials[0].number
        if self.limit is None:
            self.launch([self.overrides(trial, None) for trial in trials], first, None)
            return
        used = [self.used(trial) for trial in trials]
        # The limit of all trials, but for the last ones where the sweep's time ends a little before theirs.
        limits = [min(self.limit, seconds + self.seconds_left()) for seconds in used]
        jobs = [self.overrides(trial, limit) for trial, limit in zip(trials, limits, strict=True)]
        began = time.monotonic()
        self.launch(jobs, first, max(limits))
        granted = max(limit - seconds for limit, seconds in zip(limits, used, strict=True))
        self.overhead = max(self.overhead, time.monotonic() - began - granted)

    def used(self, trial: Trial) -> float:
        """Seconds that earlier attempts at a trial used."""
        ledger = read_ledger(self.study.folder(trial.number) / LEDGER)
        return 0.0 if ledger is None else ledger["used"]

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

    def report(self, trial: Trial, outcome: Outcome) -> None:
        """Log a line about a trial that has ended.

        Raises:
            TrainingError: all of the first trials have failed.
        """
        point = " ".join(f"{key}={value}" for key, value in trial.point.items())
        if outcome.state == FAILED:
            remember_failure(trial.number, f"job {trial.number} ({point})", outcome.reason)
            log.info("trial %d failed: %s", trial.number, outcome.reason)
            self.failed += 1
            if self.failed >= MAX_FAILURES and not self.succeeded and self.study.method != "grid":
                raise TrainingError(f"sweep: the first {self.failed} trials have all failed")
            return
        self.succeeded += 1
        best = self.study.best()
        compared = "" if best is None else f" (best {best[1]:.3f}, trial {best[0]})"
        verb = "pruned at" if outcome.state == PRUNED else "has"
        log.info("trial %d %s mIoU %.3f%s  %s", trial.number, verb, outcome.miou or 0.0, compared, point)


def reset_if_lost(folder: Path) -> None:
    """Empty the folder of a trial that was killed and lost more than a tenth of its limit.

    Such a trial is restarted, so that it competes with the full limit. What it lost is the time since its
    last checkpoint.

    Raises:
        CocosegError: its job is still running.
    """
    # A job whose sweep was killed stops by itself, and may be about to save.
    with locked(folder, key="sweep.name"):
        ledger = read_ledger(folder / LEDGER)
        if ledger is None or ledger["finished"] or Outcome.read(folder) is not None:
            return
        saved = [file.stat().st_mtime for file in folder.glob("checkpoints/*.ckpt")]
        lost = (folder / LEDGER).stat().st_mtime - max(saved) if saved else ledger["used"]
        if lost > LOST * (ledger["limit"] or ledger["used"]):
            log.info("%s is restarted: the kill has cost it %s", from_here(folder), clock(lost))
            shutil.rmtree(folder)


def read_outcome(folder: Path) -> Outcome:
    """Read the outcome of the job in this folder; one without a score has failed."""
    outcome = Outcome.read(folder)
    if outcome is None:
        return Outcome(FAILED, f"exited without writing outcome.json; see the log in {from_here(folder)}")
    if outcome.state == STOPPED:  # this job alone received a signal
        return Outcome(FAILED, f"stopped ({outcome.reason})", outcome.miou)
    if outcome.state == FINISHED and outcome.miou is None:
        return Outcome(FAILED, "there was no validation, and so no score")
    return outcome
