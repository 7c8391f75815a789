"""Progress of long work and of downloads: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from cocoseg.durations import now

log = logging.getLogger(__name__)
T = TypeVar("T")

LINE_EVERY = 10.0  # seconds between plain lines


def track(
    items: Iterable[T], *, total: int | None, what: str, size: Callable[[T], int] | None = None
) -> Iterator[T]:
    """Yield `items` and show how many of `total` are done.

    Args:
        items: the work.
        total: number of items, or of bytes if `size` is given; None if unknown.
        what: names the items, as in "masks".
        size: bytes of an item.
    """
    count = size or (lambda _: 1)
    if sys.stderr.isatty() or "ipykernel" in sys.modules:  # notebooks show bars, too
        unit = {"unit": "B", "unit_scale": True} if size else {"unit": ""}
        with tqdm(total=total, desc=what, smoothing=0.1, leave=False, **unit) as bar:
            for item in items:
                yield item
                bar.update(count(item))
        return
    begin = shown = now()
    done = 0
    for item in items:
        yield item
        done += count(item)
        seconds = now() - begin
        if begin + seconds - shown >= LINE_EVERY:
            left = "" if total is None else f", {seconds / done * (total - done):.0f} s left"
            log.info("%s: %s%s", what, _amount(done, total, in_bytes=size is not None), left)
            shown = begin + seconds


def _amount(done: int, total: int | None, *, in_bytes: bool) -> str:
    unit, scale = (" MB", 1e6) if in_bytes else ("", 1)
    of = "" if total is None else f" of {total / scale:.0f}"
    return f"{done / scale:.0f}{of}{unit}"
