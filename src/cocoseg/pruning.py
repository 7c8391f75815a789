"""Ends a trial of a sweep early where it is worse than most were after the same share of their time."""

import logging
from pathlib import Path
from typing import Any

import lightning as L

from cocoseg import processes
from cocoseg.budget import Budget
from cocoseg.config import SweepConfig

log = logging.getLogger(__name__)

TENTHS = 10  # at which trials are compared: their validations come at times of their own
GRACE, LATE = 3, 8  # tenths before and from which no trial is ended: too little is known, or to be saved
STARTUP = 4  # trials to be finished first


class PruneTrial(L.Callback):
    """Reports the best validation mIoU so far as it comes, at tenths of the trial's progress.

    Does nothing in a run that is no trial, or whose sweep prunes none.

    Attributes:
        reason: why the trial was ended early; empty where it was not.
    """

    def __init__(self, settings: SweepConfig, sweep_dir: Path, budget: Budget):
        self.settings, self.sweep_dir, self.budget = settings, sweep_dir, budget
        self.reason = ""
        self._trial: Any = None  # Optuna's, opened when there is something to report
        self._reported, self._best = 0, 0.0
        # The rungs of halving are other steps than tenths, and end trials themselves.
        self._broken = settings.trial is None or not settings.prune or settings.method == "halving"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or pl_module.scores is None or pl_module.scores_are_partial:
            return
        # Of several processes the first one asks.
        worse = processes.rank() == 0 and self._is_worse(pl_module.scores.miou)
        if processes.agreed(worse)[0]:
            self.reason = f"mIoU {self._best:.3f} at {self.budget.progress:.0%}, below the median"
            log.warning("pruned: %s", self.reason)
            trainer.should_stop = True

    def _is_worse(self, miou: float) -> bool:
        tenth = int(TENTHS * self.budget.progress)
        if self._broken or self.reason or tenth >= TENTHS:  # it ends anyway
            return False
        try:
            return self._report(miou, tenth)
        except Exception as error:  # a database that does not answer is no reason to lose the training
            log.warning("this trial can't be pruned: %s: %s", type(error).__name__, error)
            self._broken = True
            return False

    def _report(self, miou: float, tenth: int) -> bool:
        """Tell Optuna; returns whether it would prune. A tenth without a validation has the value before."""
        trial = self._open()
        for passed in range(self._reported + 1, tenth):
            trial.report(self._best, passed)
        self._best = max(self._best, miou)
        if tenth <= self._reported:
            return False
        trial.report(self._best, tenth)
        self._reported = tenth
        return tenth < LATE and trial.should_prune()

    def _open(self) -> Any:
        if self._trial is None:
            import optuna

            from cocoseg.study import open_storage

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.load_study(
                study_name=self.settings.name or self.sweep_dir.name,
                storage=open_storage(self.settings.storage, self.sweep_dir),
                pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=GRACE),
            )
            found = study.get_trials(deepcopy=False)[self.settings.trial]
            self._trial = optuna.trial.Trial(study, found._trial_id)
            before = found.intermediate_values  # of an attempt that was interrupted
            self._reported = max(before, default=0)
            if self.budget.used_before:  # it is gone on with
                self._best = max(before.values(), default=0.0)
        return self._trial
