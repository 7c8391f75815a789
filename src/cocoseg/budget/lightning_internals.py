"""Private behavior of Lightning 2.6 that callbacks need, a function each.

`tests/budget/test_lightning_internals.py` tries all but the two plain attributes against Lightning itself,
and fails when that changes.
"""

from typing import NoReturn

import lightning as L

NEVER = 2**62  # batches


def validate_after_step(trainer: L.Trainer, due: bool) -> None:
    """Set whether a validation follows the step in progress; call it from `on_train_batch_end`.

    The public `val_check_interval` is fixed when `fit` begins. `_TrainingEpochLoop._should_check_val_fx` of
    2.6.6 compares its copy, `val_check_batch`, with the number of batches after every step, and reads
    `check_val_every_n_epoch`: 1 allows a validation in every epoch, None anywhere.
    """
    trainer.val_check_batch = 1 if due else NEVER
    if due:
        trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch and 1


def end_validation() -> NoReturn:
    """End the validation in progress; call it from `on_validation_batch_start`.

    `_EvaluationLoop.run` of 2.6.6 takes StopIteration for the end of the data, wherever it comes from.
    """
    raise StopIteration


def batches_of_epoch(trainer: L.Trainer) -> int:
    """Return the number of batches of this epoch before the current one, which the trainer does not tell.

    `batch_idx` of `_TrainingEpochLoop` is -1 in 2.6.6 before the first one.
    """
    return max(0, trainer.fit_loop.epoch_loop.batch_idx)


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    """Return the callbacks of a trainer."""
    return trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it


def log_interval(trainer: L.Trainer) -> int:
    """Return `log_every_n_steps` of a trainer."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it


def ignore_sigterm(trainer: L.Trainer) -> None:
    """Keep several ranks from asking each other for SIGTERM before every step.

    `_TrainingEpochLoop.advance` of 2.6.6 calls `_broadcast_sigterm_tensor`, which waits for every GPU. After
    a signal it broadcasts in the midst of other exchanges.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
