"""What YAML files compute: `${sweep_folder:…}`, `${minutes:…}`. No torch."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from cocoseg.durations import parse_duration

# Overrides that may change when a sweep is resumed.
AMOUNTS = ("sweep.trials", "sweep.total_time", "sweep.name")


def sweep_folder(method: str | None, name: str | None, overrides: Sequence[str]) -> str:
    """The folder of a sweep: its name, else one that the same command gives again.

    Args:
        method: search method.
        name: name chosen by the user.
        overrides: overrides of the command line; those of AMOUNTS make no difference.
    """
    if name is not None:
        return name
    kept = sorted(item for item in overrides if item.lstrip("+").split("=")[0] not in AMOUNTS)
    return f"{method}_{hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:8]}"


def minutes(duration: Any, more: int = 0) -> int:
    """A duration in whole minutes, rounded up, and some more; a year where there is no limit."""
    limit = parse_duration(duration, key="trainer.max_time")
    return 366 * 24 * 60 if limit is None else math.ceil(limit.total_seconds() / 60) + more


def register() -> None:
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
    OmegaConf.register_new_resolver("minutes", minutes, replace=True)
