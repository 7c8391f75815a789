"""Measured durations of checkpoints, exports and figures, from which the budget plans the end of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Stopwatch:
    """Measures one kind of work. Only its owner starts it.

    Attributes:
        total: seconds of all measurements together.
        expected: seconds that the next one will take: the longest so far, of earlier attempts too, unless
            the owner knows better.
    """

    def __init__(self) -> None:
        self.total = self.expected = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the block, also where it raises."""
        begin = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            self.total += seconds
            self.expected = max(self.expected, seconds)


@dataclass
class Stopwatches:
    """A stopwatch for each part of a training that saves something."""

    checkpoint: Stopwatch = field(default_factory=Stopwatch)
    export: Stopwatch = field(default_factory=Stopwatch)
    figures: Stopwatch = field(default_factory=Stopwatch)
    formats: Stopwatch = field(default_factory=Stopwatch)

    def total(self) -> float:
        """Seconds of all of them together."""
        return sum(watch.total for watch in vars(self).values())
