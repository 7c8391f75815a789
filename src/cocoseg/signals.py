"""The signals that end a run or a sweep in order. No torch."""

import os
import signal
import threading
import time

SIGNALS = (signal.SIGINT, signal.SIGTERM)
if hasattr(signal, "SIGUSR1"):
    SIGNALS += (signal.SIGUSR1,)  # a scheduler's warning that the job's time is nearly up

PARENT = "COCOSEG_PARENT"  # environment variable: the process that launched this one


def exit_code(received: signal.Signals) -> int:
    """As a shell counts; a scheduler's warning is no failure."""
    return 0 if received.name == "SIGUSR1" else 128 + received


def stop_with_launcher() -> None:
    """Stop in order where the process that launched this one is killed: nothing else would tell it to.

    The processes that this one starts are not told of the launcher: they have another parent.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True, name="parent").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
