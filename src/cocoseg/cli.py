"""What the entry points share: the schema's registration, the typed configuration, errors in one line."""

import atexit
import errno
import functools
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cocoseg.config import Config, PredictConfig, check, check_predict
from cocoseg.config_evaluate import EvaluateConfig
from cocoseg.errors import CocosegError
from cocoseg.files import from_here, write_bytes

BAD_INPUT = CocosegError.exit_code
INTERRUPTED = 130  # as a shell counts: 128 + SIGINT

_SCHEMAS = {"train": Config, "evaluate": EvaluateConfig, "predict": PredictConfig}
for _name, _node in _SCHEMAS.items():
    ConfigStore.instance().store(_name, _node, group="schema", package="_global_", provider="cocoseg")

_failed: list[str] = []  # jobs of a multirun that ended with an error


class JobFailedError(CompactHydraException):
    """A job of a multirun ended; Hydra prints the sentence without a stack trace and goes on."""


def entry_point(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Turn what goes wrong in `main` into one line on stderr and an exit code.

    A user's mistake ends a single run with 2. Inside a multirun the job raises instead, the others go on,
    and Hydra ends with 1; a list of what failed comes last. `HYDRA_FULL_ERROR=1` shows stack traces.
    """

    @functools.wraps(main)
    def wrapped(config: DictConfig) -> None:
        try:
            main(config)
        except KeyboardInterrupt:
            _say("interrupted")
            sys.exit(INTERRUPTED)
        except Exception as error:
            sentence = _sentence(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _remember(sentence or f"{type(error).__name__}: {error}")
            if sentence is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise JobFailedError(f"error: {sentence}") from None
            _say(f"error: {sentence}")
            sys.exit(getattr(error, "exit_code", BAD_INPUT))

    return wrapped


def typed(config: DictConfig, *, may_download: bool = False) -> Config:
    """The configuration as plain, checked dataclasses; `may_download` as in `cocoseg.config.check`.

    Raises:
        CocosegError: names the key.
    """
    settings: Config = _as_object(config, "run_dir")
    check(settings, may_download=may_download)
    return settings


def typed_predict(config: DictConfig) -> PredictConfig:
    """As `typed`, of predict.py."""
    settings: PredictConfig = _as_object(config, "output")
    check_predict(settings)
    return settings


def _as_object(config: DictConfig, folder: str) -> Any:
    """The dataclasses of the schema; `folder` is the key of the run's folder."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and is_typed(folder):
        raise CocosegError(f"{folder}: the jobs of a multirun can't share it; set hydra.sweep.dir instead")
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise CocosegError(str(error).splitlines()[0]) from error


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


def is_typed(key: str) -> bool:
    """Whether a key stands on the command line."""
    return key in map(key_of, HydraConfig.get().overrides.task)


def start_run(config: DictConfig, *, overwrite: bool) -> Path:
    """The run folder, with the resolved configuration in it.

    Raises:
        CocosegError: the folder holds a run already, which is not to be overwritten.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    file = folder / "config.yaml"
    if file.exists() and not overwrite:
        raise CocosegError(
            f"run_dir: {from_here(folder)} holds a run already; name another folder, "
            "or go on with that run by resume=auto"
        )
    write_bytes(file, OmegaConf.to_yaml(config, resolve=True).encode())
    return folder


def build(node: Any, key: str, *positional: Any, **named: Any) -> Any:
    """Instantiate the `_target_` of a configuration node, with further arguments.

    Raises:
        CocosegError: names the key and what went wrong.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise CocosegError(f"{key}: no _target_ in it, the class or function to call")
    try:
        return instantiate(node, *positional, _convert_="all", **named)
    except InstantiationException as error:
        cause = " ".join(str(error.__cause__ or error).split())
        settings = ", ".join(f"{name}={value!r}" for name, value in node.items() if name != "_target_")
        shown = f"{settings[:80]}…" if len(settings) > 80 else settings
        raise CocosegError(f"{key}: {cause} (from {node['_target_']}({shown}))") from error


def _sentence(error: Exception) -> str | None:
    """What to tell the user, or None for what is a bug."""
    if isinstance(error, CocosegError):
        return error.sentence
    environment = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)
    if isinstance(error, OSError) and error.errno in environment:
        return f"{error.filename}: {error.strerror}"
    return None


def _remember(sentence: str) -> None:
    job = HydraConfig.get()
    if not _failed:
        atexit.register(_list_failures)
    _failed.append(f"job {job.job.num} ({job.job.override_dirname}): {sentence}")


def _list_failures() -> None:
    _say(f"{len(_failed)} {'job' if len(_failed) == 1 else 'jobs'} failed:\n  " + "\n  ".join(_failed))


def _say(message: str) -> None:
    print(message, file=sys.stderr)
