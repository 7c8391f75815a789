import os
import time

import pytest

from cocoseg.errors import TrainingError
from cocoseg.workers import CHUNK, CHUNKS, parallel_map

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


def test_an_error_ends_the_work() -> None:
    """Of two batches only what is being done and a few chunks that are on their way are finished."""
    begin = time.monotonic()

    def fail_late(task: int) -> None:
        time.sleep(0.01)
        if task == CHUNK:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(parallel_map(fail_late, iter(range(TASKS)), TASKS, 2))
    assert time.monotonic() - begin < 0.01 * TASKS / 2 / 2
