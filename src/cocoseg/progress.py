"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

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
