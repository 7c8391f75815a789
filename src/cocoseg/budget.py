"""The wall-clock budget: how much is used, what the end still needs, how far training has come. No torch.

It runs from the start of the process to the last exported file, over all attempts at a run: `budget.json`
in the run folder says every few seconds how much is used, so that a kill gives no time back, and time in
which nothing ran is not charged.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocoseg.durations import clock
from cocoseg.errors import CocosegError
from cocoseg.files import write_json

LEDGER = "budget.json"
WRITE_EVERY = 2.0  # seconds: what a kill can hide at most
END = 2.0  # seconds to leave the process: with torch and Lightning loaded, Python alone takes 1.4
MARGIN = 1.1  # on what was measured
GUESS_MARGIN = 1.3  # on what was only estimated
VALIDATION_LIMIT = 0.2  # of the budget: a last validation that takes longer is cut
FORMATS = 60.0  # seconds kept for other formats of the model, and the share of the limit that is the most
FORMATS_LIMIT = 0.1

_IMPORTED = time.monotonic()
_jobs = 0  # that this process has begun


@dataclass
class Spent:
    """Seconds by what they went to; `starting` is everything before the first step."""

    starting: float = 0.0
    loading: float = 0.0
    computing: float = 0.0
    validating: float = 0.0
    saving: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{name} {clock(seconds)}" for name, seconds in vars(self).items())


@dataclass
class Expected:
    """Seconds that each part of the end takes, as far as it is known."""

    validation: float = 0.0
    checkpoint: float = 0.0
    export: float = 0.0
    step: float = 0.0
    figures: float = 0.0


@dataclass
class Budget:
    """One run's time.

    Attributes:
        limit: seconds; None for no limit.
        used_before: seconds that earlier attempts used.
        began: `time.monotonic()` when this attempt began.
        trained_from: seconds used when training first began, in whichever attempt.
        progress: 0 when training begins, 1 when it ends; schedules follow it.
        spent, expected: see there.
        extended: seconds by which `budget.extend` has prolonged the limit since the run last ended.
        finished: the run came to its end.
        training: this attempt has begun to train.
        writes_formats: it ends with other formats of the model.
    """

    limit: float | None
    used_before: float = 0.0
    began: float = field(default_factory=time.monotonic)
    trained_from: float | None = None
    progress: float = 0.0
    spent: Spent = field(default_factory=Spent)
    expected: Expected = field(default_factory=Expected)
    extended: float = 0.0
    finished: bool = False
    training: bool = False
    writes_formats: bool = False

    def used(self) -> float:
        """Seconds used so far, earlier attempts included."""
        return self.used_before + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.limit is None else self.limit - self.used()

    def after_validation(self) -> float:
        """Seconds that must be left when the last validation ends: for the figures and what follows them."""
        return MARGIN * self.expected.figures + self.after_figures()

    def after_figures(self) -> float:
        """Seconds that must be left when the last figures are drawn: two checkpoints, the export, other
        formats of the model, the exit."""
        checkpoint, export = self.expected.checkpoint, self.expected.export
        return MARGIN * (2 * checkpoint + (export or checkpoint)) + self.for_formats() + END

    def for_formats(self) -> float:
        """Seconds that are kept for other formats of the model; they are written once, at the end."""
        if self.limit is None or not self.writes_formats:
            return 0.0
        return min(FORMATS, FORMATS_LIMIT * self.limit)

    def reserve(self) -> float:
        """Seconds that must be left when the last step ends."""
        if self.limit is None:
            return 0.0
        validation = min(MARGIN * self.expected.validation, VALIDATION_LIMIT * self.limit)
        return validation + self.after_validation()

    def is_spent(self) -> bool:
        """Whether no time for training is left."""
        return self.left() <= self.reserve() + self.expected.step

    def is_near_its_end(self) -> bool:
        """Whether a checkpoint more than planned would come too late."""
        return self.left() <= self.reserve() + MARGIN * self.expected.checkpoint + self.expected.step

    def fits_validation(self) -> bool:
        """Whether a validation, and the saving of what it finds, fits beside the one at the end."""
        saving = self.after_validation() - self.for_formats() - END
        needed = MARGIN * self.expected.validation + saving + self.expected.step
        return self.left() > self.reserve() + needed

    def fits_validation_batch(self, seconds: float) -> bool:
        """Whether a further batch of validation, of so many seconds, can still be afforded."""
        return self.left() > seconds + self.after_validation()

    def begin_training(self) -> None:
        """The first step of this attempt is about to come."""
        if not self.training:  # it may begin again, after memory ran out
            self.spent.starting += time.monotonic() - self.began
        self.training = True
        if self.trained_from is None:
            self.trained_from = self.used()

    def advance(self, position: float) -> None:
        """Bring `progress` up to date.

        Args:
            position: steps done as a share of `max_steps`, or epochs of `max_epochs`; 0 where neither is set.
        """
        share = 0.0
        if self.limit is not None:
            begin = self.trained_from or 0.0
            length = self.limit - self.reserve() - begin
            share = (self.used() - begin) / length if length > 0 else 1.0
        self.progress = min(1.0, max(self.progress, share, position))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Charge the block to one kind of `Spent`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.charge(kind, time.monotonic() - begin)

    def charge(self, kind: str, seconds: float) -> None:
        setattr(self.spent, kind, getattr(self.spent, kind) + seconds)

    def to_dict(self) -> dict[str, Any]:
        """For the ledger and for checkpoints."""
        return {
            "limit": self.limit,
            "used": self.used(),
            "trained_from": self.trained_from,
            "spent": vars(self.spent).copy(),
            "expected": vars(self.expected).copy(),
            "extended": self.extended,
            "finished": self.finished,
        }

    def resume(self, ledger: dict[str, Any] | None) -> None:
        """Take over what earlier attempts used; of several ledgers the one with the most counts."""
        if ledger is None or ledger["used"] <= self.used_before:
            return
        self.used_before = float(ledger["used"])
        self.trained_from = ledger["trained_from"]
        self.spent = Spent(**ledger["spent"])
        # Earlier versions expected other parts of the end, too.
        known = {name: value for name, value in ledger["expected"].items() if hasattr(self.expected, name)}
        self.expected = Expected(**known)

    def follow(self, ledger: dict[str, Any]) -> None:
        """Take over the clock of the process that leads this one: what its `to_dict` says now."""
        self.limit = ledger["limit"]
        self.began = time.monotonic()
        self.resume(ledger)


def open_budget(limit: float | None) -> Budget:
    """The budget of a job: of the first one of a process since the process began, of later ones from now."""
    global _jobs
    _jobs += 1
    age = process_age() if _jobs == 1 else 0.0
    return Budget(limit, began=time.monotonic() - age)


def process_age() -> float:
    """Seconds since this process began; since this module was imported where the system doesn't tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        if 0 <= age < 86400:
            return age
    return time.monotonic() - _IMPORTED


def read_ledger(path: Path) -> dict[str, Any] | None:
    """What a run's `budget.json` says, or None where there is none.

    Raises:
        CocosegError: it is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
        Budget(content["limit"], extended=content["extended"], finished=content["finished"]).resume(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CocosegError(f"{path}: not readable ({error}); delete it to begin the budget anew") from error
    return content


@contextmanager
def kept_in(path: Path, budget: Budget) -> Iterator[None]:
    """Write the ledger every few seconds within the block, whatever the training is busy with."""
    done = threading.Event()

    def write() -> None:
        while not done.wait(WRITE_EVERY):
            with suppress(CocosegError):  # a full disk is reported by who saves the model
                write_json(path, budget.to_dict())

    write_json(path, budget.to_dict())
    thread = threading.Thread(target=write, daemon=True, name="ledger")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(CocosegError):
            write_json(path, budget.to_dict())


def time_line(budget: Budget) -> str:
    """How the time was spent, for the last words of a run."""
    limit = "" if budget.limit is None else f" of {clock(budget.limit)}"
    return f"{clock(budget.used())}{limit}: {budget.spent}"
