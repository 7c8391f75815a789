"""Work that is done beside the training, and given up rather than waited for."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """A thread that makes things and writes them, in the order in which they were handed in.

    Few may wait: for a new one, the oldest that was not begun yet is left out. An error is reported once and
    ends the writing, but not the program.

    Args:
        what: is written, for the report of an error.
        write: is called in the thread with each thing; never any more once `finish` has returned.
        waiting: how many may wait.

    Attributes:
        left_out: how many were.
    """

    def __init__(self, what: str, write: Callable[[T], None], waiting: int = 1):
        self.left_out = 0
        self._what, self._write = what, write
        self._jobs: deque[Iterable[T]] = deque(maxlen=waiting)
        self._changed = threading.Condition()  # guards the fields below, and the writing itself
        self._closing = self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=what)
        self._thread.start()

    def submit(self, things: Iterable[T]) -> None:
        """Hand in things to write; they are made in the thread where this is a generator. Does not wait."""
        if not self._thread.is_alive():
            return
        with self._changed:
            self.left_out += len(self._jobs) == self._jobs.maxlen
            self._jobs.append(things)
            self._changed.notify()

    def finish(self, seconds: float | None = None) -> bool:
        """Wait until all is written, or so many seconds; what is not written by then never will be.

        Returns:
            Whether all was written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self._closed = True
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                for thing in job:
                    with self._changed:
                        if self._closed:
                            return
                        self._write(thing)
        except Exception as error:  # whatever it is, a training of hours is worth more
            log.warning("%s: %r; the training goes on without", self._what, error, exc_info=True)

    def _next(self) -> Iterable[T] | None:
        """What comes next, or None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            return self._jobs.popleft() if self._jobs else None
