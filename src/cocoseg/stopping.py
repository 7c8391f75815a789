"""Ctrl-C, SIGTERM, SIGUSR1: the step in progress is finished, a checkpoint written, the run ended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cocoseg.signals import SIGNALS, exit_code


class StoppedBySignalError(Exception):
    """Raised between two batches once a signal has come."""


class StopOnSignal(L.Callback):
    """Ends `fit` between two batches once a signal has come; a second signal ends the process at once.

    An exception that a signal raises wherever the program happens to be can leave a lock taken (that of
    TensorBoard's writer was seen) or a checkpoint half saved. Here the signal only leaves a note.

    Attributes:
        received: the signal that came, or None.
    """

    received: signal.Signals | None = None

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
        try:
            yield
        except (StoppedBySignalError, SIGTERMException):  # the second is Lightning's own answer to SIGTERM
            pass
        except RuntimeError:
            if self.received is None:  # else a signal to all processes has ended those of the loaders
                raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_start(self, *args: Any) -> None:
        self._stop_if_asked()

    def on_validation_batch_start(self, *args: Any) -> None:
        self._stop_if_asked()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def _stop_if_asked(self) -> None:
        if self.received is not None:
            raise StoppedBySignalError(self.received.name)


def leave_group(worker: int) -> None:
    """For the start of a loader's process: what a terminal or a scheduler sends to the group of the process
    that trains is not for its loaders, which must go on until the step in progress is done."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
