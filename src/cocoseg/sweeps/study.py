"""Optuna's side of a sweep: a study in a journal file of the sweep's folder, to which jobs report as well."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocoseg.errors import CocosegError
from cocoseg.run_folder import FAILED, PRUNED, STOPPED, Outcome
from cocoseg.sweeps.space import Space

JOURNAL = "optuna.journal"
LIMIT = "limit"  # attribute of Optuna's study

try:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as error:
    raise CocosegError("sweep: Optuna is not installed; pip install -e '.[sweep]'") from error


@dataclass(frozen=True)
class Trial:
    """A point of the search space, tried in the run folder of the same number."""

    number: int
    point: dict[str, str]


class Study:
    """The trials of a sweep, owned by one process.

    Args:
        sweep_dir: folder of the sweep; trial n runs in its subfolder n.
        name: name of the study.
        method: tpe, random or grid.
        seed: trial n of a seed is proposed the same (by TPE where the results before it are the same, too).

    Raises:
        CocosegError: the folder holds a study of another search space or method.
    """

    def __init__(self, sweep_dir: Path, name: str, method: str, space: Space, seed: int):
        self.sweep_dir, self.method, self.space, self.seed = sweep_dir, method, space, seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=open_storage(sweep_dir),
            study_name=name,
            direction="maximize",
            pruner=optuna.pruners.NopPruner(),  # the jobs decide, see pruning.py
            load_if_exists=True,
        )
        self._require_same_search(name)
        if method == "grid" and not self._trials():
            for point in space.grid():
                self._study.enqueue_trial(point)

    @property
    def limit(self) -> float | None:
        """Seconds of each trial, fixed when the sweep begins; None where they are as configured."""
        return self._study.user_attrs.get(LIMIT)

    @limit.setter
    def limit(self, seconds: float) -> None:
        self._study.set_user_attr(LIMIT, seconds)

    def started(self) -> int:
        """Number of trials that have started, however they ended."""
        return sum(trial.state != TrialState.WAITING for trial in self._trials())

    def finished(self) -> int:
        """Number of trials that have ended: with a score, pruned or failed."""
        return sum(trial.state.is_finished() for trial in self._trials())

    def interrupted(self) -> list[Trial]:
        """Trials that were running when an earlier process of this sweep ended.

        A trial whose job ended in order, only too late for the study to know, is recorded as it ended.
        """
        trials = []
        for found in self._trials():
            if found.state == TrialState.RUNNING:
                outcome = Outcome.read(self.folder(found.number))
                if outcome is None or outcome.state == STOPPED:
                    trials.append(self._propose(optuna.trial.Trial(self._study, found._trial_id)))
                else:
                    self.record(found.number, outcome)
        return trials

    def start_trial(self) -> Trial:
        return self._propose(self._study.ask())

    def record(self, number: int, outcome: Outcome) -> None:
        """Tell Optuna how a trial ended."""
        if outcome.state == FAILED or outcome.miou is None:
            self._study.tell(number, state=TrialState.FAIL)
        elif outcome.state == PRUNED:
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, outcome.miou)

    def folder(self, number: int) -> Path:
        return self.sweep_dir / str(number)

    def best(self) -> tuple[int, float] | None:
        """Number and mIoU of the best trial that was neither pruned nor failed."""
        with suppress(ValueError):  # there is none
            best = self._study.best_trial
            return best.number, best.value
        return None

    def _trials(self) -> list[Any]:
        """All trials as Optuna keeps them, by number, the points of a grid that have not started included."""
        return self._study.get_trials(deepcopy=False)

    def _propose(self, trial: Any) -> Trial:
        # A sampler for each trial: what is proposed depends on its number, not on how often the sweep was
        # interrupted.
        seed = (self.seed * 1_000_003 + trial.number) % 2**32
        if self.method == "tpe":
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)
        return Trial(trial.number, self.space.propose(trial))

    def _require_same_search(self, name: str) -> None:
        search = json.dumps([self.method, self.space.describe()])
        known = self._study.user_attrs.get("search")
        if known is None:
            self._study.set_user_attr("search", search)
        elif known != search:
            raise CocosegError(
                f"sweep: the study {name!r} has another search space or method ({known}); "
                "choose another name by sweep.name=…"
            )


def open_storage(sweep_dir: Path) -> Any:
    """Optuna's journal in the folder of a sweep, which processes of one machine or file system share."""
    return JournalStorage(JournalFileBackend(str(sweep_dir / JOURNAL)))
