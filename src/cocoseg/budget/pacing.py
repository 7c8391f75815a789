"""Keeps a training within its budget: when to validate, when to stop, and where the time goes."""

import logging
from collections import deque
from typing import Any

import lightning as L
import torch

from cocoseg.budget.budget import GUESS_MARGIN, Budget
from cocoseg.budget.lightning_internals import (
    NEVER,
    batches_of_epoch,
    end_validation,
    log_interval,
    validate_after_step,
)
from cocoseg.config import Config
from cocoseg.distributed import from_rank_zero
from cocoseg.durations import as_clock, now

log = logging.getLogger(__name__)

# Seconds of the limit from which on cuDNN may try its algorithms. On an H200 it took half a minute for each
# size of images with the depthwise convolutions of EfficientNet-Lite0, and 20 s with a residual U-Net.
AUTOTUNED_FROM = 1200.0
RECENT = 10  # number of last steps; the next one is expected to take as long as the slowest of them


def is_paced(config: Config, budget: Budget) -> bool:
    """Tell whether the budget decides when to validate."""
    settings = config.trainer
    chosen = settings.get("val_check_interval"), settings.get("check_val_every_n_epoch")
    return budget.limit is not None and chosen == (None, None)


def trainer_settings(config: Config, budget: Budget) -> dict[str, Any]:
    """Return Lightning's settings, without `max_time` and with a rule for when to validate."""
    settings = {"check_val_every_n_epoch": None, **config.trainer}
    settings.pop("max_time", None)
    if settings.get("benchmark") is None and budget.limit is not None and budget.limit < AUTOTUNED_FROM:
        settings["benchmark"] = False
    settings["use_distributed_sampler"] = False  # the data module gives each process its own images
    interval = settings.get("val_check_interval")
    if is_paced(config, budget):
        settings["val_check_interval"] = NEVER  # until KeepBudget says otherwise
    # An interval in batches may span epochs, a share of an epoch may not.
    elif settings.get("check_val_every_n_epoch") is None and not isinstance(interval, int):
        settings["check_val_every_n_epoch"] = 1
    return settings


class KeepBudget(L.Callback):
    """Stops training when only the time for the last validation, checkpoints and export is left.

    Settings of `trainer` decide when to validate, if they name an interval. Otherwise validation gets a share
    of the time that grows with the progress, so that it comes more often near the end. A validation that is
    too long for the time left runs on as many batches as fit.

    Args:
        budget: receives what is measured here.
        config: `budget.validation_share`, and whether `trainer` decides when to validate.
    """

    def __init__(self, budget: Budget, config: Config):
        self.budget = budget
        self.validation_share = config.budget.validation_share
        self.paced = is_paced(config, budget)
        self._steps: deque[float] = deque(maxlen=RECENT)  # seconds per step, loading included
        self._waits: deque[float] = deque(maxlen=RECENT)  # seconds per step that it waited for data
        self._batches = 0  # number of batches in the current validation
        self._batch_began = 0.0
        self._batch_seconds = 0.0  # seconds of the slowest validation batch so far

    # --- training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.budget.expected["validation"]:
            batches = sum(trainer.num_val_batches)
            self.budget.expect("validation", GUESS_MARGIN * batches * self._batch_seconds)
        self.budget.begin_training()
        if self.budget.is_spent():
            used = as_clock(self.budget.used())
            log.warning("%s were used before the first step: too little time to learn anything", used)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.budget.advance(_position(trainer))
        (self.budget.progress,) = from_rank_zero(self.budget.progress)
        loading = self.budget.charge("loading")
        self._waits.append(loading if self._steps else 0.0)  # the first wait includes the loaders' start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = log_interval(trainer)
        is_logged = bool(every) and trainer.global_step % every == 0
        if is_logged and pl_module.device.type == "cuda":
            # Loggers wait for the GPU after this hook, which would count as waiting for data.
            torch.cuda.synchronize(pl_module.device)
        self._steps.append(self._waits[-1] + self.budget.charge("computing"))
        self.budget.expect("step", max(self._steps))
        due = self._is_due() or is_last_step(trainer)
        stop, validate = from_rank_zero(self.budget.is_spent(), due)
        if stop:
            trainer.should_stop = True
        if self.paced or stop:
            validate_after_step(trainer, due=bool(stop or validate))
        if is_logged:
            self._log(trainer, pl_module, len(batch[0]))

    def _is_due(self) -> bool:
        """Tell whether the share of the time allows another validation, and the end is not near.

        A validation may find a better model, so the time for saving counts as its own.
        """
        budget = self.budget
        allowed = self.validation_share * budget.used() * budget.progress
        seconds = budget.spent["validating"] + budget.spent["saving"] + budget.expected["validation"]
        return seconds <= allowed and budget.fits_validation()

    # --- validation

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.budget.charge("starting" if trainer.sanity_checking else "computing")
        self._batches = 0

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._batch_began = now()
        (fits,) = from_rank_zero(self.budget.fits_validation_batch(self._batch_seconds))
        # One batch at least, because there are no scores without.
        if self._batches and not (trainer.sanity_checking or fits):
            end_validation()

    def on_validation_batch_end(self, *args: Any) -> None:
        self._batches += 1
        if self._batches > 1:  # the first batch includes the loaders' start
            self._batch_seconds = max(self._batch_seconds, now() - self._batch_began)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            seconds = self.budget.charge("starting")
            self._batch_seconds = self._batch_seconds or seconds
            return
        seconds, batches = self.budget.charge("validating"), sum(trainer.num_val_batches)
        if self._batches < batches:
            log.warning("validated on %d of %d batches: there was no time for more", self._batches, batches)
        else:
            self.budget.expect("validation", seconds)

    # --- records

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A checkpoint may be resumed without its run folder, where the ledger is.
        checkpoint["budget"] = self.budget.to_dict()

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, images: int) -> None:
        budget = self.budget
        total, recent = sum(budget.spent.values()) or 1.0, sum(self._steps)
        values = {
            "wall_clock/elapsed": budget.used(),
            "wall_clock/progress": budget.progress,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/speed_images_per_second": images * trainer.world_size / (recent / len(self._steps)),
            "train/speed_waiting_share": sum(self._waits) / recent,
            **{f"wall_clock/share_{kind}": seconds / total for kind, seconds in budget.spent.items()},
        }
        pl_module.log_dict(values)


def is_last_step(trainer: L.Trainer) -> bool:
    """Tell whether a limit in steps or epochs ends the training after this batch."""
    return _position(trainer, done=1) >= 1


def _position(trainer: L.Trainer, done: int = 0) -> float:
    """Share of the steps or epochs that is done; 0 where neither is limited.

    Args:
        done: 1 at the end of a batch, which Lightning counts later than the step.
    """
    shares = [0.0]
    if trainer.max_steps and trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs and trainer.max_epochs > 0:
        batches = (batches_of_epoch(trainer) + done) / trainer.num_training_batches
        shares.append((trainer.current_epoch + batches) / trainer.max_epochs)
    return max(shares)
