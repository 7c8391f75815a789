"""The search space of a sweep, in Hydra's own sweep syntax. Optuna is imported where it is used."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from cocoseg.errors import CocosegError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

DIGITS = 6  # significant digits of a proposed number


@dataclass(frozen=True)
class Space:
    """Dimensions of a search by key, as in `optimizer.lr` or `+callbacks.x`."""

    dimensions: Mapping[str, Override]

    def describe(self) -> dict[str, str]:
        """Each dimension as it was written; equal for equal spaces."""
        return {key: dimension.get_value_string() for key, dimension in sorted(self.dimensions.items())}

    def propose(self, trial: "Trial") -> dict[str, str]:
        """A point as values of overrides; the same one for a trial that has one already."""
        return {key: _format_value(_suggest(trial, key, one)) for key, one in self.dimensions.items()}

    def grid(self) -> list[dict[str, str]]:
        """All points, the last dimension changing fastest.

        Raises:
            CocosegError: a dimension is an interval.
        """
        for key, dimension in self.dimensions.items():
            if dimension.is_interval_sweep():
                raise CocosegError(f"{key}: sweep=grid can't list an interval; write choice(…) or range(…)")
        lists = [list(dimension.sweep_string_iterator()) for dimension in self.dimensions.values()]
        return [dict(zip(self.dimensions, values, strict=True)) for values in itertools.product(*lists)]


def split_overrides(overrides: Sequence[Override], extra: Mapping[str, Override]) -> tuple[list[str], Space]:
    """Separate the dimensions of the search from the settings that all trials share.

    Args:
        overrides: overrides of the command line, which win.
        extra: dimensions in `sweep.space`, by key.

    Returns:
        the shared overrides as they were typed, and the space.

    Raises:
        CocosegError: there is nothing to search.
    """
    dimensions, fixed = dict(extra), []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            dimensions[key] = override
        else:
            dimensions.pop(key, None)
            fixed.append(override.input_line)
    for key, dimension in dimensions.items():
        if not dimension.is_sweep_override():
            raise CocosegError(f"sweep.space: {key} has one value; write interval(…), choice(…) or range(…)")
    if not dimensions:
        raise CocosegError(
            "sweep: nothing to search; add settings as in 'optimizer.lr=tag(log,interval(1e-4,1e-2))' or "
            "model.base_channels=8,16"
        )
    return fixed, Space(dimensions)


def _suggest(trial: "Trial", key: str, dimension: Override) -> Any:
    distribution = make_distribution(key, dimension)
    kind = type(distribution).__name__
    if kind == "CategoricalDistribution":
        return trial.suggest_categorical(key, distribution.choices)
    suggest = trial.suggest_int if kind == "IntDistribution" else trial.suggest_float
    return suggest(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def make_distribution(key: str, dimension: Override) -> "BaseDistribution":
    """Optuna's distribution: numeric for intervals and ranges, else a choice between texts.

    Raises:
        CocosegError: the dimension is empty, has a logarithm of zero or an unknown tag.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = dimension.value()
    tags = getattr(value, "tags", set())
    if unknown := tags - {"log"}:
        raise CocosegError(f"{key}: tag {', '.join(sorted(unknown))} is not known; there is one: log")
    log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            numbers = list(value.range())
            low, high = min(numbers), max(numbers)
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(low, high, log=log, step=1 if log else abs(value.step))
            return FloatDistribution(low, high, log=log, step=None if log else abs(value.step))
        return CategoricalDistribution(list(dimension.sweep_string_iterator()))
    except ValueError as error:
        raise CocosegError(f"{key}={dimension.get_value_string()}: {' '.join(str(error).split())}") from error


def _format_value(value: Any) -> str:
    """Value of an override. The job uses the rounded number."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.{DIGITS}g}"
    return str(value)
