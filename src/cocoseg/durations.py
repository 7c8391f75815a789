"""Durations as `trainer.max_time` is written: "00:06:00:00", days:hours:minutes:seconds."""

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from cocoseg.errors import CocosegError


def parse_duration(value: Any, *, key: str) -> timedelta | None:
    """Read a wall-clock limit.

    Args:
        value: "DD:HH:MM:SS", a mapping as {hours: 6, minutes: 30}, or None for no limit.
        key: named in the error.

    Raises:
        CocosegError: anything else, numbers above all: YAML reads an unquoted 6:00:00 as 21600.
    """
    if value is None:
        return None
    how = f'write days:hours:minutes:seconds in quotes, as in {key}="00:06:00:00"'
    if isinstance(value, int | float):
        raise CocosegError(f"{key} is the number {value} (YAML reads an unquoted 6:00:00 as 21600); {how}")
    try:
        duration = timedelta(**value) if isinstance(value, Mapping) else _parse_clock(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise CocosegError(f"{key} is {value!r}, which is no duration; {how}") from error
    if duration <= timedelta(0):
        raise CocosegError(f"{key} is {value!r}; it must be longer than nothing, or null for no limit; {how}")
    return duration


def as_duration(seconds: float) -> str:
    """Write seconds as `trainer.max_time` is written: whole ones, at least one."""
    whole = timedelta(seconds=max(1, math.floor(seconds)))
    hours, rest = divmod(whole.seconds, 3600)
    return f"{whole.days:02d}:{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _parse_clock(text: Any) -> timedelta:
    match = isinstance(text, str) and re.fullmatch(
        r"(\d+):([01]?\d|2[0-3]):([0-5]?\d):([0-5]?\d)", text.strip()
    )
    if not match:
        raise ValueError(text)
    days, hours, minutes, seconds = map(int, match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
