import math
from datetime import timedelta

import pytest

from cocoseg.durations import as_duration, clock, minutes, parse_duration
from cocoseg.errors import CocosegError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("00:06:00:00", timedelta(hours=6)),
        ("01:02:03:04", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("0:0:0:1", timedelta(seconds=1)),
        (" 00:23:59:59 ", timedelta(hours=23, minutes=59, seconds=59)),
        ("100:00:00:00", timedelta(days=100)),
        ({"hours": 6}, timedelta(hours=6)),
        ({"hours": 1, "minutes": 30}, timedelta(minutes=90)),
        ({"seconds": 1.5}, timedelta(seconds=1.5)),
    ],
)
def test_durations(value, expected):
    assert parse_duration(value, key="trainer.max_time") == expected


@pytest.mark.parametrize(
    "value",
    [
        21600,
        True,
        "6 hours",
        "6:00:00",
        "",
        "00:24:00:00",
        "00:00:00:60",
        "-1:00:00:00",
        "00:06:00:00:00",
        "00:00:00:00",
        {},
        {"hours": 0},
        {"hours": -1},
        {"hour": 6},
        {"hours": math.nan},
        {"days": 10**12},
        ["00:06:00:00"],
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused_with_an_example(value):
    with pytest.raises(CocosegError, match=r'^trainer\.max_time is .*trainer\.max_time="00:06:00:00"'):
        parse_duration(value, key="trainer.max_time")


def test_a_duration_is_written_as_it_is_read():
    assert str(parse_duration("01:02:03:04", key="")) == "01:02:03:04"
    assert as_duration(90061.9) == "01:01:01:01"
    assert as_duration(0.2) == "00:00:00:01"


def test_seconds_for_people():
    assert (clock(12.34), clock(60), clock(3723.4)) == ("12.3 s", "0:01:00", "1:02:03")


def test_minutes_are_rounded_up():
    assert minutes("00:01:00:00", 10) == 70
    assert minutes({"seconds": 61}) == 2
    assert minutes(None) == 366 * 24 * 60
