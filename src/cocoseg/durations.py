"""Durations and moments as text: `6h`, days:hours:minutes:seconds, `18:00`; and the project's clock."""

import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from cocoseg.errors import CocosegError

YEAR = 366 * 24 * 60  # minutes: for programs that need a limit where there is none
# Linux stops CLOCK_MONOTONIC, which `time.monotonic` reads there, while the machine sleeps; macOS does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
_RANGE = r"(?P<minutes>[0-5]?\d):(?P<seconds>[0-5]?\d)"
CLOCKS = (rf"(?P<days>\d+):(?P<hours>[01]?\d|2[0-3]):{_RANGE}", rf"(?P<hours>\d+):{_RANGE}")
_UNITS = ("days", "hours", "minutes", "seconds")
LETTERS = "".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit[0]})?" for unit in _UNITS)
FORMS = "10m, 6h, 1h30m, 1d or 01:30:00"  # the forms of a duration, for messages
SLURM = "slurm"  # as trainer.max_time or budget.until: the end of the Slurm job
SLURM_END = "SLURM_JOB_END_TIME"  # environment variable of a Slurm job: its end in seconds since 1970
MOMENTS = ("%H:%M", "%Y-%m-%d %H:%M")
BEGAN = "COCOSEG_BEGAN"  # environment variable of a multirun's jobs: its `command_begin()`


def now() -> float:
    """The clock of the project: seconds since some moment, including those in which the machine slept."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


# Beginning of this process, estimated by its processor time. The start time that the system records is too
# early where a script called `exec`.
STARTED = now() - time.process_time()
_began = STARTED  # beginning of the command, or of the call of `cocoseg.train`
_has_job = False  # a job of that command or call has begun


def restart() -> None:
    """Begin a call of `cocoseg.train`: its time counts from now."""
    global _began, _has_job
    _began, _has_job = now(), False


def begin_job() -> float:
    """Begin a job. Returns the `now()` at which its time begins.

    For the first job that is the beginning of the command or call.
    """
    global _has_job
    began, _has_job = now() if _has_job else _began, True
    return began


def command_begin() -> float:
    """Beginning of the command or call, or of the multirun that a job belongs to, in seconds since 1970."""
    return float(os.environ.get(BEGAN) or time.time() - (now() - _began))


class Duration(timedelta):
    """A time span; as text it is days:hours:minutes:seconds, in whole seconds."""

    def __str__(self) -> str:
        hours, rest = divmod(self.seconds, 3600)
        return f"{self.days:02d}:{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def parse_duration(value: Any, *, key: str) -> Duration | None:
    """Read a duration.

    Args:
        value: "10m", "6h", "90s", "1h30m", "1.5d"; "HH:MM:SS" or "DD:HH:MM:SS"; a mapping as
            {hours: 6, minutes: 30}; or None for no limit.
        key: named in the error.

    Raises:
        CocosegError: anything else, numbers above all: YAML reads an unquoted 6:00:00 as 21600.
    """
    if value is None or isinstance(value, Duration):
        return value
    how = f"write {FORMS}, as in {key}=6h"
    if isinstance(value, int | float):
        raise CocosegError(f"{key} is the number {value} (YAML reads an unquoted 6:00:00 as 21600); {how}")
    try:
        duration = Duration(**value) if isinstance(value, Mapping) else _parse(str(value).strip())
    except (TypeError, ValueError, OverflowError) as error:
        raise CocosegError(f"{key} is {value!r}, which is no duration; {how}") from error
    if duration <= timedelta(0):
        raise CocosegError(f"{key} is {value!r}; it must be longer than nothing, or null for no limit; {how}")
    return duration


def _parse(text: str) -> Duration:
    for pattern in (*CLOCKS, LETTERS):
        if text and (match := re.fullmatch(pattern, text)):
            return Duration(**{unit: float(number or 0) for unit, number in match.groupdict().items()})
    raise ValueError(text)


def parse_moment(value: str, *, key: str) -> float:
    """Read the moment at which a run must have ended, in seconds since 1970; it may have passed.

    Args:
        value: a local time of day, "18:00", for the first one after `command_begin()`; a local date and
            time, "2026-11-27 06:00"; or `slurm`, the end of the Slurm job that this process runs in.
        key: named in the error.

    Raises:
        CocosegError: anything else, or no Slurm job.
    """
    if value == SLURM:
        end = os.environ.get(SLURM_END, "")
        if not end.isdecimal():
            raise CocosegError(
                f"{key}=slurm: {SLURM_END} is not set, so this is no Slurm job, or an old version of Slurm; "
                f"give the time itself, as in {key}={'6h' if key.endswith('time') else '18:00'}"
            )
        return float(end)
    began = datetime.fromtimestamp(command_begin())
    for pattern in MOMENTS:
        with suppress(ValueError):
            moment = datetime.strptime(value.strip(), pattern)
            if pattern == MOMENTS[0]:
                moment = datetime.combine(began, moment.time())
                moment += timedelta(days=moment <= began)
            return moment.timestamp()
    raise CocosegError(
        f"{key} is {value!r}; write a time of day or a date and a time, as in {key}=18:00 or "
        f"'{key}=2026-11-27 06:00', or slurm; in YAML files in quotes"
    )


def in_seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def as_duration(seconds: float) -> str:
    """Write seconds as `trainer.max_time` is written: whole ones, at least one."""
    return str(Duration(seconds=max(1, math.floor(seconds))))


def minutes(duration: Any, more: int = 0) -> int:
    """`${minutes:…}` of YAML files: minutes of a duration, rounded up, plus `more`; a year without limit."""
    if duration == SLURM:
        raise CocosegError("trainer.max_time=slurm is the limit of the job: set hydra.launcher.timeout_min")
    limit = parse_duration(duration, key="trainer.max_time")
    return YEAR if limit is None else math.ceil(limit.total_seconds() / 60) + more


def as_clock(seconds: float) -> str:
    """Write seconds for people: `1:02:03`, or `12.3 s` below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
