import logging
import threading

import pytest

from cocoseg.background import BackgroundWriter


def test_things_are_written_in_order_by_another_thread():
    written = []
    writer = BackgroundWriter("things", lambda thing: written.append((thing, threading.current_thread())))
    for first in (0, 10):
        writer.submit(range(first, first + 3))
        while len(written) < (3 if first == 0 else 6):
            pass

    assert writer.finish()
    assert [thing for thing, _ in written] == [0, 1, 2, 10, 11, 12]
    assert {thread for _, thread in written} != {threading.main_thread()}


def test_all_that_waits_is_written_at_the_end():
    written = []
    writer = BackgroundWriter("things", written.append, waiting=5)
    for number in range(5):
        writer.submit([number])
    assert writer.finish(seconds=60)
    assert written == [0, 1, 2, 3, 4]


def test_the_oldest_is_left_out_for_a_new_one_and_nobody_waits():
    begun, go, written = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        go.wait()
        yield "slow"

    writer = BackgroundWriter("things", written.append)
    writer.submit(slow())
    begun.wait()
    writer.submit(["old"])
    writer.submit(["new"])
    assert writer.left_out == 1
    go.set()
    assert writer.finish()
    assert written == ["slow", "new"]


def test_what_takes_too_long_is_never_written():
    begun, go, written = threading.Event(), threading.Event(), []

    def endless():
        yield "first"
        begun.set()
        go.wait()
        yield "late"

    writer = BackgroundWriter("things", written.append, waiting=2)
    writer.submit(endless())
    writer.submit(["waiting"])
    begun.wait()
    assert not writer.finish(seconds=0.01)
    go.set()
    writer._thread.join()
    assert written == ["first"]


@pytest.mark.parametrize("where", ["making", "writing"])
def test_an_error_is_reported_once_and_ends_nothing_else(where, caplog):
    written = []

    def make():
        yield 1
        if where == "making":
            raise KeyError("broken")
        yield 2

    def write(thing):
        if thing == 2:
            raise KeyError("broken")
        written.append(thing)

    writer = BackgroundWriter("the pictures", write)
    with caplog.at_level(logging.WARNING):
        writer.submit(make())
        writer._thread.join()
        writer.submit([3])
        assert writer.finish()
    assert written == [1]
    (record,) = caplog.records
    assert record.message == "the pictures: KeyError('broken'); the training goes on without"
    assert record.exc_info
