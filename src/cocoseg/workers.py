"""Worker processes: how many, how they end with their parent, and the signals that end a run. No torch."""

import _thread
import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from types import FrameType
from typing import Any, TypeVar

from cocoseg.errors import TrainingError

CHUNK = 16  # tasks that a process is given at a time
CHUNKS = 16  # chunks per process: so many are read at a time
SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)  # they end a run or a sweep cleanly
if hasattr(signal, "SIGUSR1"):
    SIGNALS += (signal.SIGUSR1,)  # a scheduler's warning that the job's time is nearly up
PARENT = "COCOSEG_PARENT"  # environment variable: the process that launched this one

if hasattr(os, "register_at_fork"):
    # A forked process that frees its parent's garbage, such as a session of onnxruntime, may wait forever for
    # threads that it does not have.
    os.register_at_fork(after_in_child=gc.freeze)

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Number of cores that this process may use, which containers and job schedulers limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_map(
    function: Callable[[T], R], tasks: Iterator[T], total: int, workers: int | None = None
) -> Generator[R, None, None]:
    """Call a function in worker processes, and yield its results in the order of the tasks.

    Args:
        function: goes to every process once.
        tasks: read as they are needed.
        total: number of tasks.
        workers: number of processes; None for one per core. With 1, or no more than CHUNK tasks, everything
            happens in this process.

    Raises:
        TrainingError: a worker process was killed.
    """
    workers = min(workers or available_cores(), math.ceil(total / CHUNK))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Fork where it is the platform's habit: it needs no importable main module.
    context = get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (function, os.getpid()))
    with stop_in_order(signal.SIGINT, signal.SIGTERM), pool:
        results: Iterator[R] = iter(())
        try:
            while batch := list(islice(tasks, CHUNKS * CHUNK * workers)):
                following = pool.map(_call, batch, chunksize=CHUNK)  # begins at once: no process waits
                yield from results
                results = following
            yield from results
        except BrokenProcessPool as error:
            raise TrainingError(
                "a worker process was ended from outside, perhaps for lack of memory; lower prepare.workers"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for what is being done: nothing is written later
            raise


_function: Callable[[Any], Any]  # what this worker process calls
_at_work = threading.Lock()  # held during a task
_is_ending = False


def _call(task: Any) -> Any:
    while _is_ending:  # until a thread ends this process
        time.sleep(1)
    with _at_work:
        return _function(task)


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it
    signal.signal(signal.SIGTERM, _end_after_task)
    end_with_parent(parent)
    if "torch" in sys.modules:  # one thread each: the other processes keep the other cores busy
        sys.modules["torch"].set_num_threads(1)


def _end_after_task(number: int, frame: FrameType | None) -> None:
    """End this process after the task in progress, so that no file remains half-written.

    SIGTERM comes from the pool after another process was killed, and from a scheduler, often to the group.
    """
    global _is_ending
    _is_ending = True

    def end() -> None:
        with _at_work:
            time.sleep(0.5)  # a result may be on its way, and a scheduler's SIGTERM to the parent
            os._exit(1)

    _thread.start_new_thread(end, ())  # a Thread would need a lock that the interrupted code may hold


def end_with_parent(parent: int | None = None, end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """End this process soon after its parent, which may be killed without a chance to end its children.

    Args:
        parent: its process id, where the parent may have ended by now.
        end: ends this process.
    """
    parent = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, daemon=True, name="parent").start()


def stop_with_launcher() -> None:
    """Stop cleanly when the process that launched this one is killed, which nothing else would report.

    The processes that this one starts have another parent and are not affected.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        end_with_parent(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))


def leave_group(worker: int) -> None:
    """Leave the process group, at the start of a loader's worker process, but end with its parent.

    A terminal or a scheduler sends signals to the whole group. Loaders must go on until the step in progress
    is done, then the process that uses them ends them. A loader that waits for its data to be taken would
    wait forever after that process was killed.
    """
    end_with_parent()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def in_main_thread() -> bool:
    """Tell whether this is the main thread, which alone may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stop_in_order(*numbers: signal.Signals) -> Iterator[None]:
    """Let these signals unwind the stack, so that worker processes and unfinished files are cleared away.

    A second one ends the process at once, even while it waits for a network drive that does not answer. In a
    program this also holds after the block. In a notebook Ctrl-C works after the block as it did before.

    Args:
        numbers: SIGINT, which raises KeyboardInterrupt, and others, which raise SystemExit.
    """
    if not in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _unwind)
    try:
        yield
    finally:
        has_come = all(signal.getsignal(number) is not _unwind for number in numbers)
        if not has_come or before[signal.SIGINT] is signal.default_int_handler:
            for number, handler in before.items():
                signal.signal(number, handler)


def _unwind(number: int, frame: FrameType | None) -> None:
    end_at_next_signal()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def end_at_next_signal() -> None:
    """Let the next signal end the process at once."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def exit_code(received: signal.Signals) -> int:
    """Exit code for a signal, as a shell counts; 0 for SIGUSR1, a scheduler's warning."""
    return 0 if received.name == "SIGUSR1" else 128 + received
