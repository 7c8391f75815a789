"""The search space of a sweep: Hydra's sweep syntax as distributions of Optuna."""

import itertools
from collections.abc import Iterable, Mapping

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from cocoseg.errors import CocosegError, reason_of

DIGITS = 6  # significant digits of a proposed number

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class Space:
    """The dimensions of a search.

    Args:
        dimensions: overrides with several values, by key as in `optimizer.lr` or `+callbacks.x`.

    Raises:
        CocosegError: a dimension is empty, has a logarithm of zero or an unknown tag.
    """

    def __init__(self, dimensions: Mapping[str, Override]):
        self.dimensions = dimensions
        self._distributions = {key: make_distribution(key, one) for key, one in dimensions.items()}

    def describe(self) -> dict[str, str]:
        """Each dimension as it was written; equal for equal spaces."""
        return {key: dimension.get_value_string() for key, dimension in sorted(self.dimensions.items())}

    def propose(self, trial: Trial) -> dict[str, str]:
        """Propose a point as values of overrides; a trial that has a point keeps it."""
        return {key: _suggest(trial, key, one) for key, one in self._distributions.items()}

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


def split_overrides(overrides: Iterable[Override], extra: Iterable[Override]) -> tuple[list[str], Space]:
    """Separate the settings that all trials share, as they were typed, from the dimensions of the search.

    Args:
        overrides: overrides of the command line, which win.
        extra: dimensions in `sweep.space`.

    Raises:
        CocosegError: there is nothing to search, or a dimension is bad.
    """
    dimensions, fixed = {override.get_key_element(): override for override in extra}, list[str]()
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            dimensions[key] = override
        else:
            dimensions.pop(key, None)
            fixed.append(str(override.input_line))
    for key, dimension in dimensions.items():
        if not dimension.is_sweep_override():
            raise CocosegError(f"sweep.space: {key} has one value; write interval(…), choice(…) or range(…)")
    if not dimensions:
        raise CocosegError(
            "sweep: nothing to search; add settings as in 'optimizer.lr=tag(log,interval(1e-4,1e-2))' or "
            "model.base_channels=8,16"
        )
    return fixed, Space(dimensions)


def make_distribution(key: str, dimension: Override) -> Distribution:
    """Make Optuna's distribution: numeric for intervals and ranges, else a choice between texts."""
    value = dimension.value()
    tags: set[str] = getattr(value, "tags", set())
    if unknown := tags - {"log"}:
        raise CocosegError(f"{key}: tag {', '.join(sorted(unknown))} is not known; there is one: log")
    log = "log" in tags
    try:
        step: float | None = None
        if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
            low, high = value.start, value.end
        elif isinstance(value, RangeSweep):
            numbers = list(value.range())
            low, high, step = min(numbers), max(numbers), None if log else abs(value.step)
        else:
            return CategoricalDistribution(list(dimension.sweep_string_iterator()))
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log, step=int(step or 1))
        return FloatDistribution(low, high, log=log, step=step)
    except ValueError as error:
        raise CocosegError(f"{key}={dimension.get_value_string()}: {reason_of(error)}") from error


def _suggest(trial: Trial, key: str, distribution: Distribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return str(trial.suggest_categorical(key, distribution.choices))
    if isinstance(distribution, IntDistribution):
        low, high = distribution.low, distribution.high
        return str(trial.suggest_int(key, low, high, step=distribution.step, log=distribution.log))
    ends = distribution.low, distribution.high
    value = trial.suggest_float(key, *ends, step=distribution.step, log=distribution.log)
    return f"{value:.{DIGITS}g}"  # the job uses the rounded one
