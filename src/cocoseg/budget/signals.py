"""Ctrl-C, SIGTERM, SIGUSR1: finish the step in progress, save a checkpoint, end the run."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import lightning as L

from cocoseg.budget.lightning_internals import ignore_sigterm
from cocoseg.distributed import largest
from cocoseg.workers import SIGNALS, in_main_thread

Kind = TypeVar("Kind", bound=L.Callback)


class StoppedBySignalError(Exception):
    """A signal has come; raised between two batches."""


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

    An exception from within a signal handler can leave a lock taken (seen with TensorBoard's writer) or a
    checkpoint half saved. Here the handler only notes the signal. The ranks tell each other before every
    batch, so that all end after the same step.

    Attributes:
        received: the signal that came, here or to another rank, or None.
    """

    received: signal.Signals | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals within the block, and end it quietly if one has come.

        After the first signal the system's own answer holds until the block ends; later blocks set no
        handlers. Python allows them in its main thread alone: in another one none is set.
        """
        if self.received is not None or not in_main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        except StoppedBySignalError:
            pass
        except RuntimeError:
            if self.received is None:  # else a signal to all processes has ended those of the loaders
                raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has set a handler of SIGTERM of its own.
        ignore_sigterm(trainer)
        if in_main_thread():
            signal.signal(signal.SIGTERM, self._note if self.received is None else signal.SIG_DFL)

    on_validation_start = on_train_start

    def on_train_batch_start(self, *args: Any) -> None:
        (number,) = largest(self.received or 0)
        if number:
            self.received = signal.Signals(int(number))
            raise StoppedBySignalError(self.received.name)

    def on_validation_batch_start(self, *args: Any) -> None:
        self.on_train_batch_start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
