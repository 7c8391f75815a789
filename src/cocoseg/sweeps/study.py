"""Optuna's study of a sweep, in a journal file of the sweep's folder, to which jobs report as well."""

import json
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from cocoseg.budget.ledger import read_ledger
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.run_folder import FAILED, FINISHED, LEDGER, PRUNED, STOPPED, Outcome
from cocoseg.sweeps.space import Space

JOURNAL = "optuna.journal"
LIMIT, SEARCH = "limit", "search"  # attributes of Optuna's study


@dataclass(frozen=True)
class Trial:
    """A point of the search space, tried in the run folder of the same number."""

    number: int
    point: dict[str, str]
    folder: Path

    def used(self) -> float:
        """Seconds that earlier attempts used."""
        ledger = read_ledger(self.folder / LEDGER)
        return 0.0 if ledger is None else ledger["used"]

    def outcome(self) -> Outcome:
        """Outcome of the job that has ended; one without a score has failed."""
        outcome = Outcome.read(self.folder)
        if outcome is None:
            return Outcome(FAILED, f"exited without outcome.json; see the log in {from_here(self.folder)}")
        if outcome.state in (FINISHED, PRUNED) and outcome.miou is not None:
            return outcome
        # It failed, received a signal that the sweep did not, or ended before its first validation.
        return Outcome(FAILED, outcome.reason or "there was no validation, and so no score", outcome.miou)


class Study:
    """The trials of a sweep, owned by one process.

    Args:
        sweep_dir: folder of the sweep; trial n runs in its subfolder n.
        seed: makes trial n the same in every sweep (by TPE if the results before it are the same, too).

    Raises:
        CocosegError: the folder holds a study of another search space or method.
    """

    def __init__(self, sweep_dir: Path, name: str, method: str | None, space: Space, seed: int):
        self.sweep_dir, self.method, self.space, self.seed = sweep_dir, method, space, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=open_storage(sweep_dir),
            study_name=name,
            direction="maximize",
            pruner=optuna.pruners.NopPruner(),  # the jobs decide, see pruning.py
            load_if_exists=True,
        )
        search = json.dumps([method, space.describe()])
        known = self._study.user_attrs.get(SEARCH, search)
        if known != search:
            raise CocosegError(
                f"sweep: the study {name!r} has another search space or method ({known}); "
                "choose another name by sweep.name=…"
            )
        self._study.set_user_attr(SEARCH, search)
        if method == "grid" and not self._trials():
            for point in space.grid():
                self._study.enqueue_trial(point)

    def fix_limit(self, seconds: float | None) -> float | None:
        """Fix the seconds of each trial when the sweep begins. Returns those that were fixed first."""
        if seconds is not None and LIMIT not in self._study.user_attrs:
            self._study.set_user_attr(LIMIT, seconds)
        return self._study.user_attrs.get(LIMIT)

    def started(self) -> int:
        """Number of trials that have started, however they ended."""
        return sum(trial.state != TrialState.WAITING for trial in self._trials())

    def interrupted(self) -> list[Trial]:
        """Trials that were running when an earlier process of this sweep ended.

        A trial whose job ended in order, only too late for the study to know, is recorded as it ended.
        """
        trials = []
        for found in self._trials():
            if found.state == TrialState.RUNNING:
                trial = self._propose(optuna.trial.Trial(self._study, found._trial_id))
                outcome = Outcome.read(trial.folder)
                if outcome is None or outcome.state == STOPPED:
                    trials.append(trial)
                else:
                    self.record(trial, trial.outcome())
        return trials

    def start_trial(self) -> Trial:
        return self._propose(self._study.ask())

    def record(self, trial: Trial, outcome: Outcome) -> None:
        """Tell Optuna how a trial ended."""
        if outcome.state == FAILED or outcome.miou is None:
            self._study.tell(trial.number, state=TrialState.FAIL)
        elif outcome.state == PRUNED:
            self._study.tell(trial.number, state=TrialState.PRUNED)
        else:
            self._study.tell(trial.number, outcome.miou)

    def _trials(self) -> list[FrozenTrial]:
        """All trials as Optuna keeps them, by number, the points of a grid that have not started included."""
        return self._study.get_trials(deepcopy=False)

    def _propose(self, trial: optuna.trial.Trial) -> Trial:
        # A sampler for each trial, so that proposals do not depend on how often the sweep was interrupted.
        seed = (self.seed * 1_000_003 + trial.number) % 2**32
        if self.method == "tpe":
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
        return Trial(trial.number, self.space.propose(trial), self.sweep_dir / str(trial.number))


def open_storage(sweep_dir: Path) -> JournalStorage:
    """Optuna's journal in the folder of a sweep, which processes of one machine or file system share."""
    return JournalStorage(JournalFileBackend(str(sweep_dir / JOURNAL)))
