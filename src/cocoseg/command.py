"""What was typed, and what of it a sweep chose."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

SWEPT = "COCOSEG_SWEPT"  # environment variable: the keys that a multirun chooses, as a JSON list
OF_A_TRIAL = ("sweep", "resume")  # what a sweeper tells a job of its sweep


@dataclass(frozen=True)
class Command:
    """What a run was asked for.

    Attributes:
        overrides: as typed; of a job of a sweep its own, without those that are about the sweep.
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
    keys = json.loads(os.environ.get(SWEPT, "[]"))
    if any(key_of(override) == "sweep.trial" for override in overrides):
        overrides = tuple(override for override in overrides if not _is_of_a_trial(override, keys))
    swept = tuple(override for override in overrides if key_of(override) in keys)
    return Command(overrides, swept, {str(group): option for group, option in job.runtime.choices.items()})


def tell_jobs(config: DictConfig) -> None:
    """Leave word for the jobs of a multirun, in whichever process they run, of what it chooses.

    A job could not tell: it is given `lr=0.001` alike, whether `lr=1e-3` or `lr=1e-3,1e-2` was typed.

    Args:
        config: of the multirun, Hydra's own included.
    """
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    keys = [key_of(override.input_line) for override in typed if override.is_sweep_override()]
    configured = [config.get("sweep", {}).get("space"), config.hydra.sweeper.get("params")]
    keys += [key_of(str(key)) for space in configured for key in space or {}]
    os.environ[SWEPT] = json.dumps(keys)


def key_of(override: str) -> str:
    """The key, or the config group, that an override is of."""
    return override.lstrip("+~").split("=")[0]


def _is_of_a_trial(override: str, swept: list[str]) -> bool:
    key = key_of(override)
    return key not in swept and (key in OF_A_TRIAL or key.startswith("sweep."))
