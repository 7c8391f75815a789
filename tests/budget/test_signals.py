"""Signals of a training."""

from concurrent.futures import ThreadPoolExecutor

from cocoseg.budget.signals import StopOnSignal


def test_in_another_thread_no_handler_is_set():
    def listen() -> None:
        with StopOnSignal().listening():
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(listen).result()
