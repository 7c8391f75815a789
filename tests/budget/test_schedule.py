import pytest

from cocoseg.budget.schedule import FIRST, rate
from cocoseg.config import ScheduleConfig


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("linear", 0.1, 1.0),
        ("linear", 0.55, 0.5),
        ("linear", 1.0, 0.0),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 0.325, 0.5 + 0.5 * 2**-0.5),
        ("cosine", 1.0, 0.0),
        ("trapezoid", 0.1, 1.0),
        ("trapezoid", 0.7, 1.0),
        ("trapezoid", 0.85, 0.5),
        ("trapezoid", 1.0, 0.0),
        ("constant", 0.1, 1.0),
        ("constant", 1.0, 1.0),
    ],
)
def test_after_the_warm_up(name: str, progress: float, expected: float) -> None:
    assert rate(ScheduleConfig(name=name, warmup=0.1), progress) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["linear", "cosine", "trapezoid", "constant"])
def test_the_rate_rises_in_the_warm_up_and_never_after(name: str) -> None:
    rates = [rate(ScheduleConfig(name=name, warmup=0.2), step / 100) for step in range(101)]
    assert rates[0] == FIRST
    assert rates[10] == pytest.approx(0.5)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert max(rates) == 1.0


def test_no_warm_up() -> None:
    assert rate(ScheduleConfig(name="linear", warmup=0.0), 0.0) == 1.0


@pytest.mark.parametrize(("cooldown", "expected"), [(0.5, 0.4), (1.0, 0.2)])
def test_the_cool_down_is_as_long_as_wanted(cooldown: float, expected: float) -> None:
    assert rate(ScheduleConfig(name="trapezoid", warmup=0.0, cooldown=cooldown), 0.8) == pytest.approx(
        expected
    )
