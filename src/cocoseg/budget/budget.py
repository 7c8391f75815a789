"""The wall-clock budget: how much is used, what the end still needs, how far training has come. No torch.

It runs from the start of the process to the last exported file, over all attempts at a run: `budget.json`
in the run folder says every few seconds how much is used, so that a kill gives no time back, and time in
which nothing ran is not charged.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocoseg.budget.stopwatch import Stopwatches
from cocoseg.durations import clock

END = 2.0  # seconds to leave the process: with torch and Lightning loaded, Python alone takes 1.4
MARGIN = 1.1  # factor on durations that were measured
GUESS_MARGIN = 1.3  # factor on durations that were only estimated
VALIDATION_LIMIT = 0.2  # share of the limit: a last validation that takes longer is cut
FORMATS = 60.0  # seconds kept for other formats of the model
FORMATS_LIMIT = 0.1  # share of the limit: the most that is kept for them
KINDS = ("starting", "loading", "computing", "validating", "saving")

_IMPORTED = time.monotonic()
_jobs = 0  # number of jobs that this process has begun


@dataclass
class Budget:
    """One run's time.

    Attributes:
        limit: seconds; None for no limit.
        used_before: seconds that earlier attempts used.
        began: `time.monotonic()` when this attempt began.
        trained_from: seconds used when training first began, in whichever attempt.
        progress: 0 when training begins, 1 when it ends; schedules follow it.
        spent: seconds by KINDS, charged by KeepBudget and by earlier attempts; see `time_spent`. `starting`
            is everything before the first step.
        expected_step: seconds of the slowest of the last steps.
        expected_validation: seconds of a whole validation.
        watches: seconds that the parts of a training which save something measure themselves.
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
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    expected_step: float = 0.0
    expected_validation: float = 0.0
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

    def time_spent(self) -> dict[str, float]:
        """Seconds of all attempts by KINDS, saving included."""
        return {**self.spent, "saving": self.spent["saving"] + self.watches.total()}

    def seconds_after_validation(self) -> float:
        """Seconds that must be left when the last validation ends: for the figures and all after them."""
        return MARGIN * self.watches.figures.expected + self.seconds_after_figures()

    def seconds_after_figures(self) -> float:
        """Seconds that must be left when the last figures are drawn: for two checkpoints, the export, other
        formats of the model, the exit."""
        checkpoint, export = self.watches.checkpoint.expected, self.watches.export.expected
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
        validation = min(MARGIN * self.expected_validation, VALIDATION_LIMIT * self.limit)
        return validation + self.seconds_after_validation()

    def is_spent(self) -> bool:
        """Tell whether no time for another step is left."""
        return not self._fits(0.0)

    def fits_checkpoint(self) -> bool:
        """Tell whether there is time for a checkpoint beside those of the end."""
        return self._fits(MARGIN * self.watches.checkpoint.expected)

    def fits_validation(self) -> bool:
        """Tell whether there is time for a validation, and to save its results, beside the one at the end."""
        saving = self.seconds_after_validation() - self.seconds_for_formats() - END
        return self._fits(MARGIN * self.expected_validation + saving)

    def fits_validation_batch(self, seconds: float) -> bool:
        """Tell whether there is time for another batch of validation that takes this long."""
        return self.left() > seconds + self.seconds_after_validation()

    def _fits(self, seconds: float) -> bool:
        return self.left() > self.seconds_reserved() + seconds + self.expected_step

    def begin_training(self) -> None:
        """Note that the first step of this attempt comes next."""
        if not self.training:
            self.spent["starting"] += time.monotonic() - self.began
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the ledger and for checkpoints."""
        saving = {part: getattr(self.watches, part).expected for part in ("checkpoint", "export", "figures")}
        return {
            "limit": self.limit,
            "used": self.used(),
            "trained_from": self.trained_from,
            "spent": self.time_spent(),
            "expected": {"validation": self.expected_validation, "step": self.expected_step, **saving},
            "extended": self.extended,
            "finished": self.finished,
        }

    def resume(self, ledger: dict[str, Any] | None) -> None:
        """Take over what earlier attempts used; of several ledgers the one with the most counts."""
        if ledger is None or ledger["used"] <= self.used_before:
            return
        self.used_before = float(ledger["used"])
        self.trained_from = ledger["trained_from"]
        self.spent = {kind: float(ledger["spent"][kind]) for kind in KINDS}
        expected = ledger["expected"]  # earlier versions expected other parts, too
        self.expected_validation = float(expected.get("validation", 0.0))
        self.expected_step = float(expected.get("step", 0.0))
        for part in ("checkpoint", "export", "figures"):
            getattr(self.watches, part).expected = float(expected.get(part, 0.0))

    def follow(self, ledger: dict[str, Any]) -> None:
        """Take over the clock of rank zero: its `to_dict` of now."""
        self.limit = ledger["limit"]
        self.began = time.monotonic()
        self.resume(ledger)


def open_budget(limit: float | None, *, writes_formats: bool = False) -> Budget:
    """Start the clock of a job: for the first one of a process when the process began, for later ones now."""
    global _jobs
    _jobs += 1
    age = process_age() if _jobs == 1 else 0.0
    return Budget(limit, began=time.monotonic() - age, writes_formats=writes_formats)


def process_age() -> float:
    """Seconds since this process began, or since this module was imported if the system doesn't say."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), since boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        if 0 <= age < 86400:
            return age
    return time.monotonic() - _IMPORTED


def time_line(budget: Budget) -> str:
    """Describe the time used, by what it was spent on, in one line."""
    limit = "" if budget.limit is None else f" of {clock(budget.limit)}"
    spent = ", ".join(f"{kind} {clock(seconds)}" for kind, seconds in budget.time_spent().items())
    return f"{clock(budget.used())}{limit}: {spent}"
