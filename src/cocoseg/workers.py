"""The same work on many things by several processes, which end with their parent, however it ends."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from cocoseg.cores import available_cores
from cocoseg.errors import TrainingError

CHUNK = 16  # tasks that a process is given at a time

T, R = TypeVar("T"), TypeVar("R")


def processes(asked_for: int | None, tasks: int) -> int:
    """How many processes to use: what was asked for, else one per core; no more than there are chunks."""
    return min(asked_for or available_cores(), math.ceil(tasks / CHUNK))


def run(
    function: Callable[[T], R], tasks: Iterator[T], workers: int, start: Callable[[], None] | None = None
) -> Generator[R, None, None]:
    """Results of `function` for each task, in any order; at most a few chunks per process are in memory.

    Args:
        function: goes to every process once.
        tasks: read here, as they are needed.
        workers: processes; with 1 everything happens in this one.
        start: called first in each of several processes.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # Fork where it is the platform's habit: it needs no importable main module.
    context = get_context("fork" if sys.platform == "linux" else None)
    with (
        sigterm_as_exit(),
        ProcessPoolExecutor(workers, context, _start_worker, (function, start, os.getpid())) as pool,
    ):
        pending: set[Future[list[R]]] = set()
        try:
            while chunk := list(islice(tasks, CHUNK)):
                pending.add(pool.submit(_do_chunk, chunk))
                if len(pending) >= 4 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in pending:
                yield from future.result()
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process was ended from outside, for want of memory perhaps; lower prepare.workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for what is being done: nothing is written later
            raise


_function: Callable[[Any], Any]  # of this worker process


def _start_worker(function: Callable[[Any], Any], start: Callable[[], None] | None, parent: int) -> None:
    global _function
    _function = function
    # Ctrl-C reaches the whole group, and a scheduler's SIGTERM often does; the parent answers both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(parent)
    if start is not None:
        start()


def end_with_parent(parent: int | None = None) -> None:
    """From now on this process ends soon after its parent, which may be killed: nothing else would tell it.

    Args:
        parent: its number, where the parent may have ended by now.
    """
    threading.Thread(target=_end_with, args=(parent or os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def leave_group(worker: int) -> None:
    """Leave the process group, at the start of a loader's worker process.

    A terminal or a scheduler sends signals to the whole group. Loaders must go on until the step in progress
    is done, then the process that uses them ends them.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that worker processes and unfinished files are cleared away."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _do_chunk(chunk: list[Any]) -> list[Any]:
    return [_function(task) for task in chunk]
