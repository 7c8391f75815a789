"""The signals that end a run or a sweep in order. No torch."""

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)
if hasattr(signal, "SIGUSR1"):
    SIGNALS += (signal.SIGUSR1,)  # a scheduler's warning that the job's time is nearly up


def exit_code(received: signal.Signals) -> int:
    """As a shell counts; a scheduler's warning is no failure."""
    return 0 if received.name == "SIGUSR1" else 128 + received
