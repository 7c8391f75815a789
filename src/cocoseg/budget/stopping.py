"""Ctrl-C, SIGTERM, SIGUSR1: the step in progress is finished, a checkpoint written, the run ended."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cocoseg.distributed import world_size
from cocoseg.workers import SIGNALS, exit_code

Kind = TypeVar("Kind", bound=L.Callback)


class StoppedBySignalError(Exception):
    """Raised between two batches once a signal has come."""


@contextmanager
def stop_on_signal(callbacks: Iterable[L.Callback]) -> Iterator[None]:
    """Let the StopOnSignal of a training answer signals within the block."""
    with find_callback(callbacks, StopOnSignal).listening():
        yield


def find_callback(callbacks: Iterable[L.Callback], kind: type[Kind]) -> Kind:
    """Return the one callback of a kind."""
    return next(callback for callback in callbacks if isinstance(callback, kind))


class StopOnSignal(L.Callback):
    """Ends `fit` between two batches once a signal has come; a second signal ends the process at once.

    An exception that a signal raises wherever the program happens to be can leave a lock taken (that of
    TensorBoard's writer was seen) or a checkpoint half saved. Here the signal only leaves a note, of which
    KeepBudget tells the other processes of a training, so that all end after the same step.

    Attributes:
        received: the signal that came, here or to another process, or None.
    """

    received: signal.Signals | None = None
    _all_know = False  # so that none stops alone, where a signal comes right after they have talked
    _listens = False

    @property
    def exit_code(self) -> int:
        """0 as long as no signal has come."""
        return 0 if self.received is None else exit_code(self.received)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals within the block, and end it quietly where one has come; after the first one, the
        system's own answer holds, here too."""
        if self.received is not None:
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._listens = True
        try:
            yield
        except (StoppedBySignalError, SIGTERMException):  # the second is Lightning's own answer to SIGTERM
            pass
        except RuntimeError:
            if self.received is None:  # else a signal to all processes has ended those of the loaders
                raise
        finally:
            self._listens = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def tell(self, number: float) -> None:
        """Some process of this training has received this signal; 0 for none."""
        if number:
            self.received = signal.Signals(int(number))
            self._all_know = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._replace_lightnings_answer(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._replace_lightnings_answer(trainer)

    def on_train_batch_start(self, *args: Any) -> None:
        self._stop_if_asked()

    def on_validation_batch_start(self, *args: Any) -> None:
        self._stop_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def _replace_lightnings_answer(self, trainer: L.Trainer) -> None:
        """To SIGTERM: of several processes it would broadcast in the midst of whatever another broadcasts,
        and ask all before each step, for which every GPU is waited for."""
        if trainer.world_size == 1 or not self._listens:
            return
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        signal.signal(signal.SIGTERM, self._note if self.received is None else signal.SIG_DFL)

    def _stop_if_asked(self) -> None:
        if self.received is not None and (self._all_know or world_size() == 1):
            raise StoppedBySignalError(self.received.name)
