import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from cocoseg import workers as module
from cocoseg.errors import TrainingError
from cocoseg.workers import CHUNK, CHUNKS, parallel_map, stop_in_order
from server import wait_for

TASKS = 2 * CHUNK * CHUNKS + 5  # more than one batch of two processes


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers: int) -> None:
    results = parallel_map(lambda task: (task, os.getpid()), iter(range(TASKS)), TASKS, workers)
    numbers, processes = zip(*results, strict=True)
    assert sorted(numbers) == list(range(TASKS))
    assert (os.getpid() in processes) == (workers == 1)


def test_few_tasks_need_no_process() -> None:
    assert list(parallel_map(lambda _: os.getpid(), iter("ab"), 2)) == [os.getpid()] * 2


def test_a_killed_process_is_one_error() -> None:
    with pytest.raises(TrainingError, match=r"ended from outside, .* lower prepare\.workers"):
        list(parallel_map(lambda task: task or os._exit(9), iter(range(TASKS)), TASKS, 2))


@pytest.mark.timeout(120)
def test_a_process_that_is_killed_at_work_does_not_leave_the_others_waiting() -> None:
    """All processes have begun by then. On Python 3.12 and 3.13 the work never ended."""

    def work(task: int) -> None:
        time.sleep(0.01)
        if task == 3 * CHUNK:
            os._exit(9)

    with pytest.raises(TrainingError, match="ended from outside"):
        list(parallel_map(work, iter(range(TASKS)), TASKS, 2))


@pytest.mark.timeout(120)
def test_a_process_that_is_killed_while_another_error_ends_the_work_leaves_no_other_waiting() -> None:
    """On Python 3.12 and 3.13 the work never ended."""

    def work(task: int) -> int:
        time.sleep(0.01)
        return os.getpid()

    results = parallel_map(work, iter(range(TASKS)), TASKS, 2)
    os.kill(next(results), signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    time.sleep(0.5)  # most often the pool has noticed it by then
    results.close()


@pytest.mark.timeout(120)
def test_tasks_in_progress_are_finished_when_another_process_is_killed(tmp_path: Path) -> None:
    def work(task: int) -> None:
        if task == CHUNK:
            wait_for((tmp_path / "0.begun").exists)  # by the other process
            os._exit(9)
        (tmp_path / f"{task}.begun").touch()
        time.sleep(2)
        (tmp_path / f"{task}.done").touch()

    with pytest.raises(TrainingError, match="ended from outside"):
        list(parallel_map(work, iter(range(TASKS)), TASKS, 2))
    begun, done = ({path.stem for path in tmp_path.glob(f"*.{end}")} for end in ("begun", "done"))
    assert begun == done != set()


def test_an_error_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks in progress and a few chunks on their way are finished, and no others of two batches."""
    is_cancelled = get_context("fork").Event()
    done = get_context("fork").Value("i", 0)

    class Pool(ProcessPoolExecutor):
        def submit(self, *arguments: object, **options: object) -> Future:
            chunk = super().submit(*arguments, **options)
            chunk.add_done_callback(lambda chunk: chunk.cancelled() and is_cancelled.set())
            return chunk

    def fail_late(task: int) -> None:
        if task == CHUNK:
            raise ZeroDivisionError
        if task > CHUNK:
            is_cancelled.wait(30)  # else all is done before a busy parent process hears of the error
        with done.get_lock():
            done.value += 1

    monkeypatch.setattr(module, "ProcessPoolExecutor", Pool)
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(fail_late, iter(range(TASKS)), TASKS, 2))
    assert done.value < TASKS / 2


class Cycle:
    """Garbage that only the garbage collector finds."""

    freed = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Cycle.freed += 1


def test_a_process_leaves_the_garbage_of_its_parent_alone() -> None:
    """A session of onnxruntime in it waited forever, as it was freed, for threads of the parent."""

    def collect(_: int) -> int:
        gc.collect()
        return Cycle.freed

    Cycle.freed = 0
    gc.collect()
    gc.disable()
    try:
        Cycle()
        freed = list(parallel_map(collect, iter(range(2 * CHUNK)), 2 * CHUNK, 2))
    finally:
        gc.enable()
    assert freed == [0] * 2 * CHUNK
    gc.collect()
    assert Cycle.freed == 1


# Reads a FIFO that nobody writes to, as a file on a network drive that does not answer.
WAITING = """
import os, sys
from pathlib import Path
from cocoseg.workers import parallel_map

def wait(task):
    os.write(1, b"%d\\n" % os.getpid())  # at once: lines of two workers don't mix
    Path(sys.argv[1]).read_bytes()

list(parallel_map(wait, iter(range(100)), 100, int(sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "pair",
    [
        ("SIGINT", "SIGINT"),
        pytest.param(("SIGTERM", "SIGTERM"), marks=pytest.mark.slow),
        pytest.param(("SIGTERM", "SIGINT"), marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_all_that_waits(tmp_path: Path, pair: tuple[str, str], workers: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path / "fifo"), str(workers)],
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = {int(process.stdout.readline()) for _ in range(workers)}
    first, second = (signal.Signals[name] for name in pair)
    process.send_signal(first)
    # Two signals that wait can be taken for one. Without worker processes the first SIGTERM ends all.
    wait_for(lambda: process.poll() is not None or not handles(process.pid, second))
    process.send_signal(second)
    assert process.wait(60) != 0
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def handles(process: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


# Works on slow tasks, and prints the process when each begins and ends.
BUSY = """
import os, time
from cocoseg.workers import parallel_map

def work(task):
    os.write(1, b"%d begun\\n" % os.getpid())
    time.sleep(0.2)
    os.write(1, b"%d done\\n" % os.getpid())

list(parallel_map(work, iter(range(1000)), 1000, 2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no process groups")
def test_a_schedulers_signal_to_the_group_lets_tasks_in_progress_finish() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = [process.stdout.readline()]
    while len({line.split()[0] for line in lines}) < 2:  # both workers have begun then
        lines.append(process.stdout.readline())
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    words = "".join([*lines, output]).split()
    assert words.count("begun") == words.count("done") < 500
    assert (process.returncode, errors) == (143, "")


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="only it has handlers")
def test_a_notebook_keeps_its_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # another one in the background
    try:
        with pytest.raises(KeyboardInterrupt), stop_in_order(signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, ours)
