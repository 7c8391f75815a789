"""The wall-clock budget: how much is used, what the end still needs, how far training has come. No torch.

It runs from the start of the process to the last exported file, over all attempts at a run: `budget.json`
in the run folder says every few seconds how much is used, so that a kill gives no time back, and time in
which nothing ran is not charged.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cocoseg.durations import as_clock, now

END = 2.0  # seconds to leave the process: with torch and Lightning loaded, Python alone takes 1.4
MARGIN = 1.1  # factor on durations that were measured
GUESS_MARGIN = 1.3  # factor on durations that were only estimated
VALIDATION_LIMIT = 0.2  # share of the limit: a last validation that takes longer is cut
FORMATS = 60.0  # seconds kept for other formats of the model
FORMATS_LIMIT = 0.1  # share of the limit: the most that is kept for them
KINDS = ("starting", "loading", "computing", "validating", "saving")
PARTS = ("step", "validation", "figures", "checkpoint", "export", "extra_formats")


@dataclass
class Budget:
    """One run's time.

    Attributes:
        limit: seconds; None for no limit. `end_by` may lower it for this attempt.
        run_limit: seconds; the limit before `end_by`.
        deadline: moment given to `end_by`, in seconds since 1970.
        used_before: seconds that earlier attempts used.
        began: `now()` when this attempt began.
        trained_from: seconds used when training first began, in whichever attempt.
        progress: 0 when training begins, 1 when it ends; schedules follow it.
        spent: seconds of all attempts by KINDS. `starting` is everything before the first step.
        expected: seconds that the next one of each of PARTS will take: a step as long as the slowest of the
            last ones, a validation as the last whole one, anything saved as the longest one so far.
        extended: seconds by which `budget.extend` has prolonged the limit since the run last ended.
        finished: the run came to its end.
        writes_formats: it ends with other formats of the model.
    """

    limit: float | None
    used_before: float = 0.0
    began: float = field(default_factory=now)
    trained_from: float | None = None
    progress: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    expected: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    extended: float = 0.0
    finished: bool = False
    writes_formats: bool = False

    def __post_init__(self) -> None:
        self._charged_until = self.began
        self.run_limit = self.limit
        self.deadline: float | None = None

    def end_by(self, moment: float | None) -> None:
        """End this attempt at a moment, in seconds since 1970, unless the limit ends it earlier."""
        self.deadline = moment
        if moment is not None:
            ends = max(0.0, self.used() + moment - time.time())
            self.limit = ends if self.run_limit is None else min(self.run_limit, ends)

    def used(self) -> float:
        """Seconds used so far, earlier attempts included."""
        return self.used_before + now() - self.began

    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self.limit is None else self.limit - self.used()

    def charge(self, kind: str) -> float:
        """Charge the time since the last charge, without what was spent on saving. Returns the seconds."""
        before, self._charged_until = self._charged_until, now()
        self.spent[kind] += self._charged_until - before
        return self._charged_until - before

    @contextmanager
    def saving(self, part: str) -> Iterator[None]:
        """Charge the block as saving, also where it raises, and expect it to take as long the next time."""
        begin = now()
        try:
            yield
        finally:
            seconds = now() - begin
            self.spent["saving"] += seconds
            self._charged_until += seconds
            self.expect(part, max(self.expected[part], seconds))

    def expect(self, part: str, seconds: float) -> None:
        """Expect the next one of a part to take this long."""
        self.expected[part] = seconds

    def begin_training(self) -> None:
        """Note that the first step of this attempt comes next."""
        self.charge("starting")
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

    def seconds_after_validation(self) -> float:
        """Seconds that must be left when the last validation ends: for the figures and all after them."""
        return MARGIN * self.expected["figures"] + self.seconds_after_figures()

    def seconds_after_figures(self) -> float:
        """Seconds that must be left after the last figures: for two checkpoints, export, formats, exit."""
        checkpoint = self.expected["checkpoint"]
        export = self.expected["export"] or checkpoint
        return MARGIN * (2 * checkpoint + export) + self.seconds_for_formats() + END

    def seconds_for_formats(self) -> float:
        """Seconds that are kept for other formats of the model; they are written once, at the end."""
        if self.limit is None or not self.writes_formats:
            return 0.0
        return min(FORMATS, FORMATS_LIMIT * self.limit)

    def seconds_reserved(self) -> float:
        """Seconds that must be left when the last step ends."""
        if self.limit is None:
            return 0.0
        validation = min(MARGIN * self.expected["validation"], VALIDATION_LIMIT * self.limit)
        return validation + self.seconds_after_validation()

    def is_spent(self) -> bool:
        """Tell whether no time for another step is left."""
        return not self._fits(0.0)

    def fits_checkpoint(self) -> bool:
        """Tell whether there is time for a checkpoint beside those of the end."""
        return self._fits(MARGIN * self.expected["checkpoint"])

    def fits_validation(self) -> bool:
        """Tell whether there is time for a validation, and to save its results, beside the one at the end."""
        saving = self.seconds_after_validation() - self.seconds_for_formats() - END
        return self._fits(MARGIN * self.expected["validation"] + saving)

    def fits_validation_batch(self, seconds: float) -> bool:
        """Tell whether there is time for another batch of validation that takes this long."""
        return self.left() > seconds + self.seconds_after_validation()

    def _fits(self, seconds: float) -> bool:
        return self.left() > self.seconds_reserved() + seconds + self.expected["step"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the ledger and for checkpoints: `ends` is the limit of this attempt."""
        return {
            "limit": self.run_limit,
            "ends": self.limit,
            "used": self.used(),
            "trained_from": self.trained_from,
            "spent": dict(self.spent),
            "expected": dict(self.expected),
            "extended": self.extended,
            "finished": self.finished,
        }

    def resume(self, ledger: dict[str, Any] | None) -> None:
        """Take over what earlier attempts used. Of several ledgers, the one that used most counts."""
        if ledger is None or ledger["used"] <= self.used_before:
            return
        self.used_before = float(ledger["used"])
        self.trained_from = ledger["trained_from"]
        self.spent = {kind: float(ledger["spent"][kind]) for kind in KINDS}
        # Earlier versions expected other parts.
        self.expected = {part: float(ledger["expected"].get(part, 0.0)) for part in PARTS}
        self.end_by(self.deadline)  # more is used now

    def follow(self, ledger: dict[str, Any], deadline: float | None = None) -> None:
        """Take over the time of rank zero: its `to_dict` of now, and its deadline."""
        self.limit, self.run_limit, self.deadline = ledger["ends"], ledger["limit"], deadline
        self.began = self._charged_until = now()
        self.resume(ledger)


def no_time_left(budget: Budget, what: str) -> str:
    """Say that the time is used up, what that means, and how to add some."""
    if budget.deadline is None or budget.limit == budget.run_limit:
        used = f"{as_clock(budget.used())} of {as_clock(budget.limit or 0)} are used"
        return f"{used}: {what}; budget.extend=1h adds an hour"
    state = "has passed" if budget.deadline < time.time() else "leaves too little time"
    moment = f"{datetime.fromtimestamp(budget.deadline):%Y-%m-%d %H:%M}, {state}"
    return f"budget.until or the end of the Slurm job, {moment}: {what}; start again with a later end"


def time_line(budget: Budget) -> str:
    """Describe the time used, by what it was spent on, in one line."""
    spent = ", ".join(f"{kind} {as_clock(seconds)}" for kind, seconds in budget.spent.items())
    return f"{elapsed(budget)}: {spent}"


def elapsed(budget: Budget) -> str:
    """Describe the time used, and its limit."""
    limit = "" if budget.limit is None else f" of {as_clock(budget.limit)}"
    return f"{as_clock(budget.used())}{limit}"
