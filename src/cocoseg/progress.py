"""Long work and its progress: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

from cocoseg.durations import now
from cocoseg.errors import CocosegError
from cocoseg.workers import parallel_map

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

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


def run_tasks(
    function: Callable[[T], R | str], tasks: Iterable[T], total: int, what: str, workers: int | None
) -> list[R]:
    """Call a function in several processes, see `parallel_map`, and show the progress.

    Raises:
        CocosegError: some results are texts, which are error messages.
    """
    with closing(parallel_map(function, iter(tasks), total, workers)) as results:
        found = list(track(results, total=total, what=what))
    if problems := sorted(result for result in found if isinstance(result, str)):
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CocosegError("; ".join(problems[:3]) + more)
    return [result for result in found if not isinstance(result, str)]


def _amount(done: int, total: int | None, *, in_bytes: bool) -> str:
    unit, scale = (" MB", 1e6) if in_bytes else ("", 1)
    of = "" if total is None else f" of {total / scale:.0f}"
    return f"{done / scale:.0f}{of}{unit}"
