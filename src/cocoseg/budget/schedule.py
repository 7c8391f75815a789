"""The learning rate as a function of the run's progress."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L

from cocoseg.budget.budget import Budget
from cocoseg.cli import build
from cocoseg.config import ScheduleConfig
from cocoseg.errors import CocosegError, reason_of

FIRST = 0.05  # least factor in a warm-up, which would begin with 0


class ScheduleRate(L.Callback):
    """Sets the learning rate before every step, by the progress of the run.

    It scales the rates that the optimizer was made with in this attempt: a resumed run follows a new
    `optimizer.lr`.
    """

    def __init__(self, settings: ScheduleConfig, budget: Budget):
        self.factor, self.budget = factor_of(settings), budget

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        factor = float(self.factor(self.budget.progress))
        if self.budget.limit is None and trainer.max_steps in (-1, None) and trainer.max_epochs in (-1, None):
            factor = 1.0  # nothing ends this run but a signal, so there is no progress to follow
        for optimizer, bases in zip(trainer.optimizers, pl_module.base_rates, strict=True):
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * factor


def factor_of(settings: ScheduleConfig) -> Callable[[float], float]:
    """Return the function from progress, 0 to 1, to the factor of the rate; CocosegError where it fails."""
    if settings.own is None:
        return partial(rate, settings)
    own, name = build({**settings.own, "_partial_": True}, "schedule"), settings.own["_target_"]
    for progress in (0.0, 0.5, 1.0):
        try:
            factor = float(own(progress))
        except Exception as error:  # custom code may raise anything
            raise CocosegError(f"schedule: {name} fails at {progress}: {reason_of(error)}") from error
        if not 0 <= factor < math.inf:
            raise CocosegError(f"schedule: {name} is {factor} at {progress}; it must be a factor from 0 up")
    return own


def rate(settings: ScheduleConfig, progress: float) -> float:
    """Return the factor of the learning rate, 0 to 1.

    After the warm-up `linear` and `cosine` fall to 0, `constant` stays at 1, and a `trapezoid` stays there
    until the cool-down, in which it falls to 0 (Hägele et al. 2024, arXiv 2405.18392). A straight line to
    zero is hard to beat where the time is fixed and long (Budgeted Training, arXiv 1905.04753).

    Args:
        progress: 0 when training begins, 1 when it ends.
    """
    if progress < settings.warmup:
        return max(FIRST, progress / settings.warmup)
    left = (1 - progress) / (1 - settings.warmup)
    match settings.name:
        case "constant":
            return 1.0
        case "trapezoid":
            return min(1.0, (1 - progress) / settings.cooldown)
        case "linear":
            return left
    return 0.5 - 0.5 * math.cos(math.pi * left)
