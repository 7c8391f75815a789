"""Keeps a training within its budget: when to validate, when to stop, and where the time goes."""

import logging
import time
from collections import deque
from typing import Any

import lightning as L

from cocoseg.budget.budget import GUESS_MARGIN, Budget
from cocoseg.budget.stopping import StopOnSignal
from cocoseg.config import Config
from cocoseg.distributed import agree
from cocoseg.durations import clock

log = logging.getLogger(__name__)

NEVER = 2**62  # batches
RECENT = 10  # steps, of which the slowest is expected next


def is_paced(config: Config, budget: Budget) -> bool:
    """Whether the budget says when to validate."""
    settings = config.trainer
    chosen = settings.get("val_check_interval"), settings.get("check_val_every_n_epoch")
    return budget.limit is not None and chosen == (None, None)


def trainer_settings(config: Config, budget: Budget) -> dict[str, Any]:
    """Lightning's settings: without `max_time`, which is the budget's, and with a rule when to validate."""
    settings = {"check_val_every_n_epoch": None, **config.trainer}
    settings.pop("max_time", None)
    settings["use_distributed_sampler"] = False  # the data module gives each process its own images
    if is_paced(config, budget):
        settings["val_check_interval"] = NEVER  # until KeepBudget says otherwise
    elif settings.get("check_val_every_n_epoch") is None and not isinstance(
        settings.get("val_check_interval"), int
    ):
        settings["check_val_every_n_epoch"] = 1
    return settings


class KeepBudget(L.Callback):
    """Stops training when only the time for the last validation, checkpoints and export is left.

    Validation gets a share of the time that grows with the progress, so that it comes more often near the
    end, unless Lightning's own settings say when it comes. A validation that does not fit any more is run on
    as many batches as do.

    Args:
        budget: receives what is measured here; nobody else writes to it.
        config: its `budget.validation_share`, and whether `trainer` says when to validate.
        stop: is told of signals that came to other processes; comes after this one in a trainer's callbacks.
    """

    def __init__(self, budget: Budget, config: Config, stop: StopOnSignal | None = None):
        self.budget = budget
        self.stop = stop or StopOnSignal()
        self.validation_share = config.budget.validation_share
        self.paced = is_paced(config, budget)
        self._steps: deque[float] = deque(maxlen=RECENT)  # seconds, loading included
        self._waits: deque[float] = deque(maxlen=RECENT)  # seconds of these for data
        self._loading = 0.0  # of the step in progress
        self._mark = time.monotonic()  # when the last thing ended that was charged to somebody
        self._saved = 0.0  # seconds of saving when the mark was set
        self._validation_began = self._batch_began = 0.0
        self._batch_seconds = 0.0  # of the slowest validation batch so far
        self._batches = 0  # validated in this validation
        self._cut = False

    # --- training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.paced:
            trainer.val_check_batch = NEVER
        if not self.budget.expected.validation:
            batches = sum(trainer.num_val_batches)
            self.budget.expected.validation = GUESS_MARGIN * batches * self._batch_seconds
        self.budget.begin_training()
        self._set_mark()
        if self.budget.is_spent():
            used = clock(self.budget.used())
            log.warning("%s were used before the first step: too little time to learn anything", used)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.budget.advance(_position(trainer))
        self.budget.progress, signal = agree(self.budget.progress, noticed=self.stop.received or 0)
        self.stop.tell(signal)
        loading = self._charge_since_mark("loading")
        self._loading = loading if self._steps else 0.0  # the first one waits for the loaders to start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps.append(self._loading + self._charge_since_mark("computing"))
        self._waits.append(self._loading)
        self.budget.expected.step = max(self._steps)
        due = self._is_due() or is_last_step(trainer)
        stop, validate, _ = agree(self.budget.is_spent(), due)
        if stop:
            trainer.should_stop = True
        if self.paced:
            trainer.val_check_batch = 1 if stop or validate else NEVER
        elif stop:  # Lightning validates then, but not in an epoch that its own interval leaves out
            trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch and 1
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module, len(batch[0]))

    def _is_due(self) -> bool:
        """Whether the share of the time allows another validation, and the end is not near."""
        budget = self.budget
        allowed = self.validation_share * budget.used() * budget.progress
        return budget.spent.validating + budget.expected.validation <= allowed and budget.fits_validation()

    # --- validation

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_began = time.monotonic()
        self._batches, self._cut = 0, False

    def on_validation_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._batch_began = time.monotonic()
        fits = self.budget.fits_validation_batch(self._batch_seconds)
        fits, signal = agree(fits, noticed=self.stop.received or 0)
        self.stop.tell(signal)
        # One batch at least: there are no scores without.
        if self._batches and not (trainer.sanity_checking or fits):
            self._cut = True
            raise StopIteration  # Lightning takes it for the end of the data

    def on_validation_batch_end(self, *args: Any) -> None:
        self._batches += 1
        if self._batches > 1:  # the first one waits for the loaders to start
            self._batch_seconds = max(self._batch_seconds, time.monotonic() - self._batch_began)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = time.monotonic() - self._validation_began
        batches = sum(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)
        if trainer.sanity_checking:
            if not self._batch_seconds:
                self._batch_seconds = seconds
            return
        if self._cut:
            log.warning("validated on %d of %d batches: there was no time for more", self._batches, batches)
        else:
            self.budget.expected.validation = seconds
        self.budget.charge("validating", seconds)
        self._set_mark()

    # --- what else

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["budget"] = self.budget.to_dict()

    def _set_mark(self) -> None:
        self._mark = time.monotonic()
        self._saved = self.budget.time_spent().saving

    def _charge_since_mark(self, kind: str) -> float:
        """Charge the time since the mark, without what was spent saving meanwhile; returns the seconds."""
        before, saved = self._mark, self._saved
        self._set_mark()
        seconds = max(0.0, self._mark - before - (self._saved - saved))
        self.budget.charge(kind, seconds)
        return seconds

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, images: int) -> None:
        budget, spent = self.budget, vars(self.budget.time_spent())
        total, recent = sum(spent.values()) or 1.0, sum(self._steps)
        values = {
            "budget/elapsed": budget.used(),
            "budget/progress": budget.progress,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "speed/images_per_second": images * trainer.world_size / (recent / len(self._steps)),
            "speed/waiting_share": sum(self._waits) / recent,
            **{f"budget/share_{kind}": seconds / total for kind, seconds in spent.items()},
        }
        pl_module.log_dict(values)


def is_last_step(trainer: L.Trainer) -> bool:
    """Whether a number of steps or epochs ends the training here."""
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    return (
        bool(trainer.max_epochs) and 0 < trainer.max_epochs <= trainer.current_epoch + trainer.is_last_batch
    )


def _position(trainer: L.Trainer) -> float:
    """Steps or epochs done as a share of those allowed; 0 where neither is limited."""
    shares = [0.0]
    if trainer.max_steps and trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs and trainer.max_epochs > 0:
        batch = max(0, trainer.fit_loop.epoch_loop.batch_idx)
        shares.append((trainer.current_epoch + batch / trainer.num_training_batches) / trainer.max_epochs)
    return max(shares)
