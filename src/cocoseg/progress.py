"""Progress of long work and of downloads: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)
T = TypeVar("T")

LINE_EVERY = 10.0  # seconds between plain lines


def track(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done; `what` names them, as in "masks"."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit="", smoothing=0.1, leave=False)
        return
    begin = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= LINE_EVERY:
            left = (now - begin) / done * (total - done)
            log.info("%s: %d of %d, %.0f s left", what, done, total, left)
            shown = now


class Progress:
    """Of a download, as a context manager.

    Counts bytes, which make the speed, and images where `unit` says so.
    """

    def __init__(self, what: str, *, unit: str, total: int | None = None):
        self.bytes = 0
        self._what, self._unit, self._total = what, unit, total
        self._done = self._first = 0  # images, or bytes of the file
        self._begin = self._shown = time.monotonic()
        self._shown_bytes = 0
        self._bar: tqdm | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total,
                desc=self._what,
                unit_scale=self._unit == "B",
                leave=False,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def expect(self, done: int, total: int | None) -> None:
        """An attempt begins with `done` bytes of `total`, where that is known."""
        self._done, self._total = done, total
        self._first, self._begin = done, time.monotonic()
        if self._bar is not None:
            self._bar.total = total
            self._bar.initial = self._bar.n = self._bar.last_print_n = done

    def received(self, size: int) -> None:
        """So many more bytes."""
        self.bytes += size
        if self._unit == "B":
            self._done += size
        self._show()

    def finished(self) -> None:
        """One more image, fetched or not."""
        self._done += 1
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        seconds = now - self._shown
        if seconds < (0.5 if self._bar is not None else LINE_EVERY):
            return
        speed = f"{(self.bytes - self._shown_bytes) / seconds / 1e6:.1f} MB/s"
        self._shown, self._shown_bytes = now, self.bytes
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(self._done - self._bar.n)
        else:
            log.info("%s: %s, %s%s", self._what, self._count(), speed, self._left(now))

    def _count(self) -> str:
        if self._unit != "B":
            return f"{self._done} of {self._total}"
        return f"{self._done / 1e6:.0f}" + (f" of {self._total / 1e6:.0f} MB" if self._total else " MB")

    def _left(self, now: float) -> str:
        gained = self._done - self._first
        if self._total is None or not gained:
            return ""
        return f", {(now - self._begin) / gained * (self._total - self._done):.0f} s left"
