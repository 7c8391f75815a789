"""Time as text: days:hours:minutes:seconds as `trainer.max_time` is written, and seconds for people."""

import math
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from cocoseg.errors import CocosegError

YEAR = 366 * 24 * 60  # minutes: for programs that want a limit where there is none
# Linux stops CLOCK_MONOTONIC, which `time.monotonic` reads there, while the machine sleeps; macOS does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
CLOCK = re.compile(r"(?P<days>\d+):(?P<hours>[01]?\d|2[0-3]):(?P<minutes>[0-5]?\d):(?P<seconds>[0-5]?\d)")


def now() -> float:
    """The clock of the project: seconds since some moment, those that a laptop slept included."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


# Beginning of this process: not that of the system's records, which count what a script did before it called
# `exec`. The processor's time tells how long Python took to come here.
STARTED = now() - time.process_time()


class Duration(timedelta):
    """A time span; as text it is days:hours:minutes:seconds, in whole seconds."""

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        return f"{self.days:02d}:{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def parse_duration(value: Any, *, key: str) -> Duration | None:
    """Read a wall-clock limit.

    Args:
        value: "DD:HH:MM:SS", a mapping as {hours: 6, minutes: 30}, or None for no limit.
        key: named in the error.

    Raises:
        CocosegError: anything else, numbers above all: YAML reads an unquoted 6:00:00 as 21600.
    """
    if value is None or isinstance(value, Duration):
        return value
    how = f'write days:hours:minutes:seconds in quotes, as in {key}="00:06:00:00"'
    if isinstance(value, int | float):
        raise CocosegError(f"{key} is the number {value} (YAML reads an unquoted 6:00:00 as 21600); {how}")
    try:
        duration = Duration(**value) if isinstance(value, Mapping) else _parse_clock(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CocosegError(f"{key} is {value!r}, which is no duration; {how}") from error
    if duration <= timedelta(0):
        raise CocosegError(f"{key} is {value!r}; it must be longer than nothing, or null for no limit; {how}")
    return duration


def _parse_clock(text: Any) -> Duration:
    match = CLOCK.fullmatch(str(text).strip())
    if not match:
        raise ValueError(text)
    return Duration(**{unit: int(number) for unit, number in match.groupdict().items()})


def in_seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def as_duration(seconds: float) -> str:
    """As `trainer.max_time` is written, in whole seconds."""
    return str(Duration(seconds=max(1, math.floor(seconds))))


def minutes(duration: Any, more: int = 0) -> int:
    """`${minutes:…}` of YAML files: a duration in whole minutes, rounded up, plus some; a year without."""
    limit = parse_duration(duration, key="trainer.max_time")
    return YEAR if limit is None else math.ceil(limit.total_seconds() / 60) + more


def clock(seconds: float) -> str:
    """For people: `1:02:03`, and `12.3 s` below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
