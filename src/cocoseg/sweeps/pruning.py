"""Pruning: a trial of a sweep ends early if it is worse than others were after the same share of their time.

Optuna's pruners decide (`sweep.pruner`). A step of theirs is a tenth of a trial's progress, because
validations come at times of their own. The trials of a sweep have the same limit, so a tenth is as long in
each.
"""

import logging
from pathlib import Path
from typing import Any

import lightning as L

from cocoseg import distributed
from cocoseg.budget.budget import Budget
from cocoseg.config import SweepConfig

log = logging.getLogger(__name__)

TENTHS = 10  # steps of a trial
LAST_PRUNED = 7  # step after which no trial is ended: too little time would be saved
STARTUP_TRIALS, WARMUP = 4, 3  # median: trials that must have finished, first step at which it prunes
FIRST_RUNG, FACTOR = 2, 3  # halving, hyperband: step of the first rung; one trial in FACTOR is promoted


def make_pruner(name: str) -> Any:
    """Optuna's pruner of this name: median, halving or hyperband.

    Halving has rungs at steps 2 and 6. Hyperband has two brackets of trials, one that begins with each of
    these rungs; a trial's bracket follows from its number, so that all processes agree on it.
    """
    from optuna import pruners

    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=FACTOR)
    if name == "hyperband":
        return pruners.HyperbandPruner(FIRST_RUNG, max_resource=TENTHS, reduction_factor=FACTOR)
    return pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=WARMUP)


class PruneTrial(L.Callback):
    """Reports the best mIoU so far at each tenth of a trial's progress, and ends a trial that is pruned.

    Does nothing in a run that is no trial, or whose sweep has no pruner.

    Attributes:
        reason: why the trial was ended early; empty where it was not.
    """

    def __init__(self, settings: SweepConfig, sweep_dir: Path, budget: Budget):
        self.settings, self.sweep_dir, self.budget = settings, sweep_dir, budget
        self.reason = ""
        self._trial: Any = None  # Optuna's, opened when there is something to report
        self._reported, self._best = 0, 0.0
        self._enabled = settings.trial is not None and settings.pruner != "none"

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or pl_module.scores is None or pl_module.scores_are_partial:
            return
        # Only the process of rank 0 asks Optuna; the others follow its answer.
        prune = distributed.rank() == 0 and self._should_prune(pl_module.scores.miou)
        if distributed.from_rank_zero(prune)[0]:
            so_far = f"mIoU {self._best:.3f} at {self.budget.progress:.0%}"
            self.reason = f"{so_far}, by sweep.pruner={self.settings.pruner}"
            log.warning("pruned: %s", self.reason)
            trainer.should_stop = True

    def _should_prune(self, miou: float) -> bool:
        """Report to Optuna and return its decision. A tenth without a validation has the value before it."""
        tenth = int(TENTHS * self.budget.progress)
        if not self._enabled or self.reason or tenth >= TENTHS:  # the trial ends anyway
            return False
        try:
            trial = self._open()
            for passed in range(self._reported + 1, tenth):
                trial.report(self._best, passed)
            self._best = max(self._best, miou)
            if tenth <= self._reported:
                return False
            trial.report(self._best, tenth)
            self._reported = tenth
            return tenth <= LAST_PRUNED and trial.should_prune()
        except Exception as error:  # Optuna may raise anything, and the training is worth more
            log.warning("this trial can't be pruned: %s: %s", type(error).__name__, error)
            self._enabled = False
            return False

    def _open(self) -> Any:
        if self._trial is None:
            import optuna

            from cocoseg.sweeps.study import open_storage

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.load_study(
                study_name=self.settings.name or self.sweep_dir.name,
                storage=open_storage(self.sweep_dir),
                pruner=make_pruner(self.settings.pruner),
            )
            found = study.get_trials(deepcopy=False)[self.settings.trial or 0]
            self._trial = optuna.trial.Trial(study, found._trial_id)
            earlier = found.intermediate_values  # reported by an attempt that was interrupted
            self._reported = max(earlier, default=0)
            self._best = max(earlier.values(), default=0.0)
        return self._trial
