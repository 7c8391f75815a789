import math
import time
from datetime import datetime, timedelta

import pytest

from cocoseg import durations
from cocoseg.durations import SLURM_END, as_clock, as_duration, minutes, parse_duration, parse_moment
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
        ("6:00:00", timedelta(hours=6)),
        ("48:30:00", timedelta(hours=48.5)),
        ("10m", timedelta(minutes=10)),
        ("90s", timedelta(seconds=90)),
        ("6h", timedelta(hours=6)),
        ("1h30m", timedelta(minutes=90)),
        ("1.5d", timedelta(hours=36)),
        ("1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
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
        "6",
        "30m1h",
        "1h30",
        "0s",
        "1:60:00",
        "10:00",
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
    with pytest.raises(CocosegError, match=r"^trainer\.max_time is .*trainer\.max_time=6h$"):
        parse_duration(value, key="trainer.max_time")


def test_a_duration_is_written_as_it_is_read():
    assert str(parse_duration("01:02:03:04", key="")) == "01:02:03:04"
    assert as_duration(90061.9) == "01:01:01:01"
    assert as_duration(0.2) == "00:00:00:01"


def test_seconds_for_people():
    assert (as_clock(12.34), as_clock(60), as_clock(3723.4)) == ("12.3 s", "0:01:00", "1:02:03")


def test_minutes_are_rounded_up():
    assert minutes("00:01:00:00", 10) == 70
    assert minutes({"seconds": 61}) == 2
    assert minutes(None) == 366 * 24 * 60


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch):
    """Set the clock on the wall to a local time, at which this process begins."""

    def set_clock(text: str) -> float:
        moment = datetime.fromisoformat(text).timestamp()
        monkeypatch.setattr(time, "time", lambda: moment)
        monkeypatch.setattr(durations, "now", lambda: 1000.0)
        monkeypatch.setattr(durations, "_began", 1000.0)
        monkeypatch.setattr(durations, "_has_job", False)  # to be restored
        return moment

    return set_clock


@pytest.mark.parametrize(
    ("value", "hours"),
    [("18:00", 6), ("6:30", 18.5), ("12:00", 24), ("2026-11-29 00:00", 36), ("2026-11-27 11:00", -1)],
)
def test_moments(at, value, hours):
    noon = at("2026-11-27 12:00")
    assert parse_moment(value, key="budget.until") - noon == hours * 3600


def test_a_time_of_day_is_the_next_one_after_the_process_began(at, monkeypatch: pytest.MonkeyPatch):
    began = at("2026-11-27 17:59")
    evening = began + 60
    monkeypatch.setattr(time, "time", lambda: began + 120)  # a later job of a multirun
    monkeypatch.setattr(durations, "now", lambda: 1120.0)
    assert parse_moment("18:00", key="budget.until") == evening
    durations.restart()  # another call in a notebook
    assert parse_moment("18:00", key="budget.until") == evening + 24 * 3600


def test_jobs_of_a_multirun_have_its_time_of_day(at, monkeypatch: pytest.MonkeyPatch):
    """In processes of their own, which begin later: one that waited in a queue, say."""
    evening = at("2026-11-27 17:59") + 60
    monkeypatch.setenv(durations.BEGAN, str(durations.command_begin()))
    at("2026-11-28 09:00")
    assert parse_moment("18:00", key="budget.until") == evening


def test_the_first_job_of_a_call_counts_from_its_beginning_and_later_ones_from_their_own(monkeypatch):
    clock = iter([1000.0, 1010.0, 1020.0])
    monkeypatch.setattr(durations, "now", lambda: next(clock))
    for name in ("_began", "_has_job"):  # to be restored
        monkeypatch.setattr(durations, name, None)
    durations.restart()
    assert (durations.begin_job(), durations.begin_job()) == (1000.0, 1010.0)
    durations.restart()
    assert durations.begin_job() == 1020.0


@pytest.mark.parametrize("value", ["1080", "25:00", "18", "tomorrow", "", "2026-11-27", "2026-13-01 10:00"])
def test_what_is_no_moment_is_refused_with_an_example(value):
    with pytest.raises(CocosegError, match=r"^budget\.until is .*budget\.until=18:00 or '"):
        parse_moment(value, key="budget.until")


def test_the_end_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SLURM_END, "1795773600")
    assert parse_moment("slurm", key="trainer.max_time") == 1795773600
    for wrong in ("", "NONE"):
        monkeypatch.setenv(SLURM_END, wrong)
        with pytest.raises(CocosegError, match=r"^trainer\.max_time=slurm: SLURM_JOB_END_TIME is not set"):
            parse_moment("slurm", key="trainer.max_time")


def test_a_job_of_slurm_can_not_follow_its_own_limit():
    with pytest.raises(CocosegError, match=r"set hydra\.launcher\.timeout_min"):
        minutes("slurm")
