"""The wall-clock budget: how much is used, what the end still needs, how far training has come. No torch.

It runs from the start of the process to the last exported file, over all attempts at a run: `budget.json`
in the run folder says every few seconds how much is used, so that a kill gives no time back, and time in
which nothing ran is not charged.
"""

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cocoseg.budget.stopwatch import Stopwatches
from cocoseg.durations import clock

END = 2.0  # seconds to leave the process: with torch and Lightning loaded, Python alone takes 1.4
MARGIN = 1.1  # on what was measured
GUESS_MARGIN = 1.3  # on what was only estimated
VALIDATION_LIMIT = 0.2  # of the budget: a last validation that takes longer is cut
FORMATS = 60.0  # seconds kept for other formats of the model, and the share of the limit that is the most
FORMATS_LIMIT = 0.1
MEASURED = ("checkpoint", "export", "figures")  # estimates that stopwatches give

_IMPORTED = time.monotonic()
_jobs = 0  # that this process has begun


@dataclass
class TimeSpent:
    """Seconds by what they were spent on; `starting` is everything before the first step."""

    starting: float = 0.0
    loading: float = 0.0
    computing: float = 0.0
    validating: float = 0.0
    saving: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{name} {clock(seconds)}" for name, seconds in vars(self).items())


@dataclass
class TimeEstimates:
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
        spent: seconds charged by KeepBudget and by earlier attempts; see `time_spent`.
        expected: seconds measured by KeepBudget and by earlier attempts; see `seconds_of`.
        watches: seconds that the parts of this attempt which save something measure themselves.
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
    spent: TimeSpent = field(default_factory=TimeSpent)
    expected: TimeEstimates = field(default_factory=TimeEstimates)
    watches: Stopwatches = field(default_factory=Stopwatches)
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

    def time_spent(self) -> TimeSpent:
        """Seconds of all attempts by what they were spent on, saving included."""
        return replace(self.spent, saving=self.spent.saving + self.watches.total())

    def seconds_of(self, part: str) -> float:
        """Expected seconds of a part of the end that saves something: `checkpoint`, `export` or `figures`."""
        return max(getattr(self.expected, part), getattr(self.watches, part).expected)

    def seconds_after_validation(self) -> float:
        """Seconds that must be left when the last validation ends: for the figures and what follows them."""
        return MARGIN * self.seconds_of("figures") + self.seconds_after_figures()

    def seconds_after_figures(self) -> float:
        """Seconds that must be left when the last figures are drawn: two checkpoints, the export, other
        formats of the model, the exit."""
        checkpoint, export = self.seconds_of("checkpoint"), self.seconds_of("export")
        return MARGIN * (2 * checkpoint + (export or checkpoint)) + self.seconds_for_formats() + END

    def seconds_for_formats(self) -> float:
        """Seconds that are kept for other formats of the model; they are written once, at the end."""
        if self.limit is None or not self.writes_formats:
            return 0.0
        return min(FORMATS, FORMATS_LIMIT * self.limit)

    def seconds_reserved(self) -> float:
        """Seconds that must be left when the last step ends."""
        if self.limit is None:
            return 0.0
        validation = min(MARGIN * self.expected.validation, VALIDATION_LIMIT * self.limit)
        return validation + self.seconds_after_validation()

    def is_spent(self) -> bool:
        """Whether no time for training is left."""
        return self.left() <= self.seconds_reserved() + self.expected.step

    def fits_checkpoint(self) -> bool:
        """Whether a checkpoint more than planned still fits."""
        needed = MARGIN * self.seconds_of("checkpoint") + self.expected.step
        return self.left() > self.seconds_reserved() + needed

    def fits_validation(self) -> bool:
        """Whether a validation, and the saving of what it finds, fits beside the one at the end."""
        saving = self.seconds_after_validation() - self.seconds_for_formats() - END
        needed = MARGIN * self.expected.validation + saving + self.expected.step
        return self.left() > self.seconds_reserved() + needed

    def fits_validation_batch(self, seconds: float) -> bool:
        """Whether a further batch of validation, of so many seconds, can still be afforded."""
        return self.left() > seconds + self.seconds_after_validation()

    def begin_training(self) -> None:
        """The first step of this attempt is about to come."""
        if not self.training:
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
            length = self.limit - self.seconds_reserved() - begin
            share = (self.used() - begin) / length if length > 0 else 1.0
        self.progress = min(1.0, max(self.progress, share, position))

    def charge(self, kind: str, seconds: float) -> None:
        """Count seconds as spent on one field of TimeSpent; for KeepBudget."""
        setattr(self.spent, kind, getattr(self.spent, kind) + seconds)

    def to_dict(self) -> dict[str, Any]:
        """For the ledger and for checkpoints."""
        return {
            "limit": self.limit,
            "used": self.used(),
            "trained_from": self.trained_from,
            "spent": asdict(self.time_spent()),
            "expected": asdict(self.expected) | {part: self.seconds_of(part) for part in MEASURED},
            "extended": self.extended,
            "finished": self.finished,
        }

    def resume(self, ledger: dict[str, Any] | None) -> None:
        """Take over what earlier attempts used; of several ledgers the one with the most counts."""
        if ledger is None or ledger["used"] <= self.used_before:
            return
        self.used_before = float(ledger["used"])
        self.trained_from = ledger["trained_from"]
        self.spent = TimeSpent(**ledger["spent"])
        # Earlier versions expected other parts of the end, too.
        known = {name: value for name, value in ledger["expected"].items() if hasattr(self.expected, name)}
        self.expected = TimeEstimates(**known)

    def follow(self, ledger: dict[str, Any]) -> None:
        """Take over the clock of the process that leads this one: what its `to_dict` says now."""
        self.limit = ledger["limit"]
        self.began = time.monotonic()
        self.resume(ledger)


def open_budget(limit: float | None, *, writes_formats: bool = False) -> Budget:
    """Start the clock of a job: the first one of a process since the process began, later ones now."""
    global _jobs
    _jobs += 1
    age = process_age() if _jobs == 1 else 0.0
    return Budget(limit, began=time.monotonic() - age, writes_formats=writes_formats)


def process_age() -> float:
    """Seconds since this process began; since this module was imported where the system doesn't tell."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        if 0 <= age < 86400:
            return age
    return time.monotonic() - _IMPORTED


def time_line(budget: Budget) -> str:
    """How the time was spent, for the last words of a run."""
    limit = "" if budget.limit is None else f" of {clock(budget.limit)}"
    return f"{clock(budget.used())}{limit}: {budget.time_spent()}"
