"""Optuna's side of a sweep: a study that is continued, shared by processes, and outlives them."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cocoseg.errors import CocosegError
from cocoseg.outcome import FAILED, PRUNED, STOPPED, Outcome
from cocoseg.space import Space

JOURNAL = "optuna.journal"
WORKERS, ASKING = ".workers", ".asking"

try:
    import optuna
    from optuna.trial import TrialState
except ImportError as error:
    raise CocosegError("sweep: Optuna is not installed; pip install -e '.[sweep]'") from error


@dataclass(frozen=True)
class Trial:
    """A point of the search space that is tried, in the run folder of the same number."""

    number: int
    point: dict[str, str]


class Study:
    """The trials of a sweep.

    A trial belongs to the process that tries it, which holds a lock as long as it lives. What a killed one
    left half done is taken over, by whichever process of the same folder comes first.

    Args:
        sweep_dir: its folder.
        name: of the study.
        storage: URL of a database; None for a file in the folder.
        method: tpe, random or grid.
        space: what is searched.
        seed: trial n of a seed is proposed the same, whatever other processes try meanwhile (TPE looks at
            their results, too).
    """

    def __init__(self, sweep_dir: Path, name: str, storage: str | None, method: str, space: Space, seed: int):
        self.sweep_dir, self.method, self.space, self.seed = sweep_dir, method, space, seed
        self.worker = f"{socket.gethostname()}_{os.getpid()}_{os.urandom(3).hex()}"
        (sweep_dir / WORKERS).mkdir(parents=True, exist_ok=True)
        self._mine = FileLock(sweep_dir / WORKERS / self.worker)
        self._mine.acquire(timeout=0)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._alone():
            self.study = optuna.create_study(
                storage=open_storage(storage, sweep_dir),
                study_name=name,
                direction="maximize",
                pruner=optuna.pruners.NopPruner(),  # that is up to the jobs
                load_if_exists=True,
            )
            self._require_same(name)
            if method == "grid" and not self.study.get_trials(deepcopy=False):
                for point in space.grid():
                    self.study.enqueue_trial(point)

    def close(self) -> None:
        self._mine.release()

    def trials(self) -> list[Any]:
        """All of them, as Optuna keeps them, by number."""
        return self.study.get_trials(deepcopy=False)

    def left(self, trials: int | None) -> float:
        """How many trials are still to be begun, or to be gone on with; infinite where there is no number."""
        begun = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
        if self.method == "grid":
            new: float = len(self.trials()) - len(begun)
        else:
            new = float("inf") if trials is None else max(0, trials - len(begun))
        return new + len(self._orphans())

    def next(self, trials: int | None) -> Trial | None:
        """A trial to try: one that was left half done, else a new one, up to so many in all."""
        with self._alone():
            for orphan in self._orphans():
                trial = self._adopted(orphan.number)
                outcome = Outcome.read(self.folder(trial.number))
                if outcome is None or outcome.state == STOPPED:
                    return self._proposed(trial)
                self.tell(trial.number, outcome)
            return self._new() if self.left(trials) > 0 else None

    def tell(self, number: int, outcome: Outcome) -> None:
        """How a trial ended."""
        if outcome.state == FAILED or outcome.miou is None:
            self.study.tell(number, state=TrialState.FAIL)
        elif outcome.state == PRUNED:
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, outcome.miou)

    def folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.sweep_dir / str(number)

    def best(self) -> tuple[int, float] | None:
        """Number and mIoU of the best trial that has come to its end."""
        known = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        return max(((trial.number, trial.value) for trial in known), key=lambda one: one[1], default=None)

    def _new(self) -> Trial:
        trial = self.study.ask()
        trial.set_user_attr("worker", self.worker)
        return self._proposed(trial)

    def _adopted(self, number: int) -> Any:
        trial = optuna.trial.Trial(self.study, self.trials()[number]._trial_id)
        trial.set_user_attr("worker", self.worker)
        return trial

    def _proposed(self, trial: Any) -> Trial:
        self.study.sampler = _sampler(self.method, self.seed, trial.number)
        return Trial(trial.number, self.space.propose(trial))

    def _orphans(self) -> list[Any]:
        """Trials whose process has died."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        dead = {file.name for file in self._other_workers() if self._is_dead(file.name)}
        return [trial for trial in running if trial.user_attrs.get("worker") in dead]

    def _other_workers(self) -> list[Path]:
        return [file for file in (self.sweep_dir / WORKERS).iterdir() if file.name != self.worker]

    def _is_dead(self, worker: str) -> bool:
        lock = FileLock(self.sweep_dir / WORKERS / worker)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        # The file must stay: without it nobody could tell any more.
        lock.release()
        (self.sweep_dir / WORKERS / worker).touch()
        return True

    def _require_same(self, name: str) -> None:
        said = json.dumps([self.method, self.space.describe()])
        known = self.study.user_attrs.get("search")
        if known is None:
            self.study.set_user_attr("search", said)
        elif known != said:
            raise CocosegError(f"sweep: {name!r} searches otherwise ({known}); name this one by sweep.name=…")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of the folder at a time: two would begin a trial more than was asked for."""
        with FileLock(self.sweep_dir / ASKING):
            yield


def open_storage(url: str | None, sweep_dir: Path) -> Any:
    """A database by its URL, else Optuna's journal in the sweep's folder.

    Raises:
        CocosegError: the database can't be opened.
    """
    if url is None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(str(sweep_dir / JOURNAL)))
    try:
        return optuna.storages.get_storage(url)
    except Exception as error:  # of whichever driver
        raise CocosegError(f"sweep.storage: {url} can't be opened ({str(error).splitlines()[0]})") from error


def _sampler(method: str, seed: int, number: int) -> Any:
    """Of one trial: processes that share a study must not draw the same random numbers."""
    own = (seed * 1_000_003 + number) % 2**32
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=own, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=own)
