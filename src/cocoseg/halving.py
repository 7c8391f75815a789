"""Successive halving over time budgets (Jamieson & Talwalkar 2016, arXiv 1502.07943).

All trials run for a short time; of these the best third (`sweep.factor`) goes on, in their own run folders,
to a limit three times as long, and so on until one is left. A run that goes on has a schedule that ends with
its new limit.
"""

import logging
import math

from cocoseg.budget import clock
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.outcome import FAILED, FINISHED, PRUNED, Outcome
from cocoseg.study import DONE, Trial
from cocoseg.sweeping import BETWEEN, SHORTEST, Sweep

log = logging.getLogger(__name__)

MOST = 10_000  # trials


def rungs(trials: int, factor: int, most: int = MOST) -> list[int]:
    """How many trials each rung has, down to a single one (9, 3, 1) or to the most rungs there may be."""
    sizes = [trials]
    while sizes[-1] > 1 and len(sizes) < most:
        sizes.append(math.ceil(trials / factor ** len(sizes)))
    return sizes


def weight(rung: int, factor: int) -> int:
    """Time that a trial takes on a rung, beyond what it took before, in units of the first one's."""
    return factor**rung - factor ** (rung - 1) if rung else 1


def cost(sizes: list[int], factor: int, parallel: int, first: int = 0) -> int:
    """Time of rungs of these sizes, in units of what a trial takes on the very first one.

    Args:
        sizes: trials on each of the rungs.
        factor: by which limits grow.
        parallel: trials side by side.
        first: which rung the first of these is.
    """
    rounds = (math.ceil(size / parallel) for size in sizes)
    return sum(weight(rung, factor) * number for rung, number in enumerate(rounds, start=first))


def most_trials(seconds: float, longest: float, factor: int, parallel: int) -> list[int]:
    """The rungs of the largest number of trials that fit, the last rung as long as `longest`; [] for none."""
    most = 1 + math.floor(math.log(max(1.0, longest / SHORTEST), factor))
    best: list[int] = []
    for trials in range(1, MOST):
        sizes = rungs(trials, factor, most)
        unit = longest / factor ** (len(sizes) - 1)
        if unit * cost(sizes, factor, parallel) <= seconds:
            best = sizes
        elif trials > factor * max(1, *best, 1):  # one rung more makes the first one cheaper
            break
    return best


def longest_rungs(seconds: float, trials: int, factor: int, parallel: int) -> list[int]:
    """As many rungs of so many trials as leave the first one long enough; [] for none."""
    for most in range(len(rungs(trials, factor)), 0, -1):
        sizes = rungs(trials, factor, most)
        if seconds / cost(sizes, factor, parallel) >= SHORTEST + BETWEEN:
            return sizes
    return []


class Halving:
    """One sweep by successive halving.

    Raises:
        CocosegError: another process works on it, or its time does not suffice.
    """

    def __init__(self, sweep: Sweep):
        self.sweep, self.study = sweep, sweep.study
        self.factor = sweep.settings.factor
        if self.study.others_alive():
            raise CocosegError(
                "sweep=halving compares all trials of a rung, in one process; use hydra/launcher=local "
                "hydra.launcher.n_jobs=… for several at a time"
            )
        # A sweep that goes on keeps the rungs that it began with.
        self.sizes: list[int] = self.study.keep("rungs", self._plan())
        if not self.sizes:
            raise CocosegError(
                f"sweep=halving: there is no time for a first rung of {SHORTEST:.0f} s to each trial; fewer "
                "trials, or more time"
            )

    def _plan(self) -> list[int]:
        sweep, trials = self.sweep, self.sweep.settings.trials
        if sweep.budget.limit is None:
            if sweep.job_limit is None:
                raise CocosegError("sweep=halving: set sweep.total_time, or trainer.max_time of the last one")
            most = 1 + math.floor(math.log(max(1.0, sweep.job_limit / SHORTEST), self.factor))
            return rungs(trials, self.factor, most)
        if trials is None:
            return most_trials(sweep.time_left(), sweep.job_limit, self.factor, sweep.parallel)
        return longest_rungs(sweep.time_left(), trials, self.factor, sweep.parallel)

    def run(self) -> None:
        members = list(range(self.sizes[0]))
        for rung in range(len(self.sizes)):
            log.info("rung %d of %d: %d trials", rung + 1, len(self.sizes), len(members))
            self.try_rung(rung, members)
            scores = self.scores(rung)
            ranked = sorted((number for number in members if number in scores), key=scores.get, reverse=True)
            members = ranked[: self.sizes[rung + 1]] if rung + 1 < len(self.sizes) else []
            for number in ranked:
                if number not in members:
                    self.end(number, rung, scores[number], is_last=rung + 1 == len(self.sizes))

    def try_rung(self, rung: int, members: list[int]) -> None:
        """Run those that have no score on this rung yet."""
        scores, states = self.scores(rung), {trial.number: trial.state for trial in self.study.trials()}
        todo = [n for n in members if n not in scores and states.get(n) not in DONE]
        while todo:
            seconds = self.seconds(rung, len(todo))
            if seconds < SHORTEST:
                log.info("no time is left for %d trials of this rung", len(todo))
                return
            now, todo = todo[: self.sweep.parallel], todo[self.sweep.parallel :]
            trials = [self.trial(number) for number in now]
            done = {trial.number for trial in trials if self.has_run(trial, rung)}
            results = [(trial, self.sweep.outcome(trial)) for trial in trials if trial.number in done]
            if rest := [trial for trial in trials if trial.number not in done]:
                results += self.sweep.try_all(rest, [seconds] * len(rest))
            for trial, outcome in results:
                if outcome.state == FAILED:
                    self.study.tell(trial.number, outcome)
                else:
                    ledger = self.sweep.ledger(trial)
                    self.study.report(
                        trial.number, outcome.miou or 0.0, rung, ledger["used"] if ledger else 0.0
                    )
                self.sweep.report(trial, outcome)

    def seconds(self, rung: int, left: int) -> float:
        """For each of the next trials, of which `left` are still to be tried on this rung."""
        sweep = self.sweep
        most = float("inf")
        if sweep.budget.limit is None or sweep.settings.trials is None:
            most = sweep.job_limit / self.factor ** (len(self.sizes) - 1) * weight(rung, self.factor)
        if sweep.budget.limit is None:
            return most
        rest = cost([left, *self.sizes[rung + 1 :]], self.factor, sweep.parallel, rung)
        return min(most, sweep.share(weight(rung, self.factor), rest))

    def trial(self, number: int) -> Trial:
        return self.study.again(number) if number < len(self.study.trials()) else self.study.new()

    def scores(self, rung: int) -> dict[int, float]:
        """mIoU of the trials that have run on a rung."""
        return {
            trial.number: trial.intermediate_values[rung]
            for trial in self.study.trials()
            if rung in trial.intermediate_values
        }

    def has_run(self, trial: Trial, rung: int) -> bool:
        """Whether its job came to the end of this rung, and only the word of it was lost by a kill."""
        outcome, ledger = Outcome.read(self.study.folder(trial.number)), self.sweep.ledger(trial)
        if outcome is None or outcome.state != FINISHED or ledger is None:
            return False
        return ledger["used"] > self.study.used(trial.number) + 1

    def end(self, number: int, rung: int, miou: float, *, is_last: bool) -> None:
        """A trial goes no further."""
        state = next(trial.state for trial in self.study.trials() if trial.number == number)
        if state in DONE:
            return
        outcome = Outcome.read(self.study.folder(number)) or Outcome(FINISHED, miou=miou)
        if not is_last:
            reason = f"on rung {rung + 1} of {len(self.sizes)}"
            outcome = Outcome(PRUNED, reason, outcome.miou, outcome.epochs, outcome.steps)
            outcome.write(self.study.folder(number))
        self.study.tell(number, outcome)


def halve(sweep: Sweep) -> None:
    """Run a sweep by successive halving, or go on with it."""
    halving = Halving(sweep)
    limit = sweep.budget.limit
    times = "" if limit is None else f" in {clock(limit)}"
    log.info("%s: %s trials%s", from_here(sweep.study.sweep_dir), ", ".join(map(str, halving.sizes)), times)
    halving.run()
