"""What was typed, and what of it a sweep chose."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


@dataclass(frozen=True)
class Command:
    """What a run was asked for.

    Attributes:
        overrides: as typed; of a job of a sweep its own.
        swept: those of them that the sweep chose.
        choices: option of each config group.
    """

    overrides: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    choices: Mapping[str, str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """For a shell."""
        return shlex.join(["python", "train.py", *self.overrides])


def command() -> Command:
    """That of the job in progress."""
    job = HydraConfig.get()
    overrides = tuple(job.overrides.task)
    chosen = job.mode == RunMode.MULTIRUN  # then `lr=1,2` is typed, and `lr=1` an override
    swept = tuple(override for override in overrides if chosen and override not in sys.argv)
    return Command(overrides, swept, {str(group): option for group, option in job.runtime.choices.items()})


def key_of(override: str) -> str:
    """The key, or the config group, that an override is of."""
    return override.lstrip("+~").split("=")[0]
