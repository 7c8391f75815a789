"""`budget.json` in a run folder: the time that is used, written every few seconds. No torch."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError
from cocoseg.files import read_json, write_json

WRITE_EVERY = 2.0  # seconds: the most that a kill can hide

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]  # three hundred years


class _Content(msgspec.Struct):
    limit: Seconds | None  # the run's own, null where Slurm or a time of day alone ends it
    used: Seconds
    trained_from: Seconds | None
    spent: dict[str, float]
    expected: dict[str, Any]  # earlier versions had other parts and values
    extended: Seconds
    finished: bool
    ends: Seconds | None = None  # the limit that held, which Slurm or a time of day may have set


def read_ledger(path: Path) -> dict[str, Any] | None:
    """Return the content of a run's `budget.json`, or None if there is none.

    Raises:
        CocosegError: it is damaged.
    """
    try:
        content = msgspec.to_builtins(read_json(path, _Content))
        Budget(content["limit"]).resume(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CocosegError(f"{path}: not readable ({error}); delete it to start the budget anew") from error
    return content


@contextmanager
def keep_ledger(path: Path, budget: Budget) -> Iterator[None]:
    """Write the ledger every few seconds within the block, from a thread.

    Raises:
        WriteError: it can't be written when the block begins; later failures are ignored.
    """
    done = threading.Event()

    def keep_writing() -> None:
        ends = False
        while not ends:
            ends = done.wait(WRITE_EVERY)
            with suppress(CocosegError):  # saving the model reports a full disk
                write_json(path, budget.to_dict())

    write_json(path, budget.to_dict())
    thread = threading.Thread(target=keep_writing, daemon=True, name="ledger")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
