from types import SimpleNamespace

import pytest

from cocoseg.budget.budget import Budget
from cocoseg.budget.schedule import FIRST, ScheduleRate, rate
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


@pytest.mark.parametrize(("max_steps", "expected"), [(10, [0.05, 0.005]), (-1, [0.1, 0.01])])
def test_the_rate_of_each_group_is_scaled(max_steps: int, expected: list[float]) -> None:
    """A run without a planned end has no progress to follow."""
    groups = [{"lr": 0.3}, {"lr": 0.3}]
    optimizer = SimpleNamespace(param_groups=groups)
    trainer = SimpleNamespace(optimizers=[optimizer], max_steps=max_steps, max_epochs=-1)
    schedule = ScheduleRate(ScheduleConfig(name="linear", warmup=0.1), Budget(None, progress=0.55))
    schedule.on_train_batch_start(trainer, SimpleNamespace(base_rates=[[0.1, 0.01]]))
    assert [group["lr"] for group in groups] == pytest.approx(expected)


def test_no_warm_up() -> None:
    assert rate(ScheduleConfig(name="linear", warmup=0.0), 0.0) == 1.0


@pytest.mark.parametrize(("cooldown", "expected"), [(0.5, 0.4), (1.0, 0.2)])
def test_the_cool_down_is_as_long_as_wanted(cooldown: float, expected: float) -> None:
    assert rate(ScheduleConfig(name="trapezoid", warmup=0.0, cooldown=cooldown), 0.8) == pytest.approx(
        expected
    )
