"""The frame of the programs: command line, checked configuration, errors in one line and exit codes."""

import atexit
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, InstantiationException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cocoseg.checks import check, check_predict
from cocoseg.config import Config, EvaluateConfig, PredictConfig, Settings
from cocoseg.durations import minutes
from cocoseg.errors import CocosegError, one_line, report_errors
from cocoseg.manual import help_text, options
from cocoseg.overrides import check_overrides, is_overridden, sweep_folder
from cocoseg.ranks import has_launcher, may_be_several
from cocoseg.run_folder import record_refused_job
from cocoseg.settings import REMOVED, convert, unknown_key
from cocoseg.workers import stop_with_launcher

BAD_INPUT = CocosegError.exit_code
INTERRUPTED = 130  # as a shell counts: 128 + SIGINT
RESTARTS = "SLURM_RESTART_COUNT"  # environment variable
FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable: 1 shows stack traces
# Launchers whose jobs have no command line of their own, by which Lightning could start a job's processes.
JOBS_IN_A_PROCESS = ("hydra._internal.", "hydra_plugins.hydra_joblib", "hydra_plugins.hydra_submitit")

# The settings that each program takes; its defaults stand in conf/<program>.yaml.
PROGRAMS: dict[str, type[Settings]] = {
    "train": Config,
    "prepare": Config,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
}
Kind = TypeVar("Kind", bound=Settings)

_is_composing = False  # HYDRA_FULL_ERROR is ours, not the user's
_failed: dict[int, str] = {}  # job number -> how the job of a multirun failed


class JobFailedError(CompactHydraException):
    """A job of a multirun ended; Hydra prints the sentence without a stack trace and goes on."""


OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("minutes", minutes, replace=True)


def program(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Make a function the main program that conf/<name>.yaml, beside its file, configures.

    The docstring of that file is what `--help` begins with.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], Any]:
        conf = Path(inspect.getfile(main)).parent / "conf"
        run = hydra.main(version_base="1.3", config_path="conf", config_name=name)(entry_point(main))

        @functools.wraps(main)
        def checked() -> Any:
            arguments, _ = get_args_parser().parse_known_args()
            added = [Path(given) for given in (arguments.config_dir, arguments.config_path) if given]
            with report_errors(), _hydra_in_one_line(PROGRAMS[name]):
                check_overrides(arguments.overrides, PROGRAMS[name], options([conf, *added]))
                if not arguments.help:
                    return run()
                about = inspect.getmodule(main).__doc__ or ""
                print(help_text(name, PROGRAMS[name], about, [conf, *added], arguments.overrides))

        return checked

    return decorate


class CompositionEnds(Callback):
    """Hydra callback: from the first job on, Hydra prints errors again, and processes inherit no setting."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if _is_composing:
            os.environ.pop(FULL_ERROR, None)

    on_multirun_start = on_run_start


@contextmanager
def _hydra_in_one_line(kind: type[Settings]) -> Iterator[None]:
    """Turn what Hydra can't compose into a CocosegError; Hydra itself would print several lines.

    Where `HYDRA_FULL_ERROR` is set, Hydra raises errors instead of printing them.
    """
    global _is_composing
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    os.environ[FULL_ERROR] = "1"
    _is_composing = True
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise CocosegError(_sentence(error, kind)) from error
    finally:
        os.environ.pop(FULL_ERROR, None)
        _is_composing = False


def _sentence(error: Exception, kind: type[Settings]) -> str:
    """The mistake in a command line that Hydra refuses."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key = str(cause.full_key)
        node, _, name = key.rpartition(".")
        if key in REMOVED:
            return unknown_key(key, kind)
        known = list(map(str, cause.parent_node))
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {node}.{close[0]}?" if close else f"known: {', '.join(known)}"
        return f"{key}: no such setting; {hint} (+{key}=… adds it)"
    sentence = " ".join(str(error).partition("\nSee https://")[0].split())
    return f"{error.override}: {sentence}" if isinstance(error, OverrideParseException) else sentence


def entry_point(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn what goes wrong in `main` into one line on stderr and an exit code.

    A user's mistake ends a single run with 2. Inside a multirun the job raises instead, the others go on,
    and Hydra ends with 1; a list of what failed comes last. `HYDRA_FULL_ERROR=1` shows stack traces.
    """

    @functools.wraps(main)
    def wrapped(config: DictConfig) -> Any:
        stop_with_launcher()
        try:
            return main(config)
        except KeyboardInterrupt:
            _say("interrupted")
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            record_refused_job(config, end)  # a signal may have ended the job before its run began
            raise
        except Exception as error:
            sentence = one_line(error)
            reason = sentence or f"{type(error).__name__}: {error}"
            record_refused_job(config, error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                job = HydraConfig.get().job
                remember_failure(job.num, f"job {job.num} ({job.override_dirname})", reason)
            if sentence is None or os.environ.get(FULL_ERROR) == "1":
                raise
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise JobFailedError(f"error: {sentence}") from None
            _say(f"error: {sentence}")
            sys.exit(getattr(error, "exit_code", BAD_INPUT))

    return wrapped


def resolve_config(config: DictConfig, kind: type[Kind] = Config, *, may_download: bool = False) -> Kind:
    """Turn a composed configuration into checked settings.

    Args:
        config: as Hydra composes it, without Hydra's own part.
        kind: Config, EvaluateConfig or PredictConfig.
        may_download: as in `cocoseg.checks.check`.

    Raises:
        CocosegError: names the key.
    """
    folder = "output" if kind is PredictConfig else "run_dir"
    if _is_in_multirun() and is_overridden(folder):
        raise CocosegError(f"{folder}: the jobs of a multirun can't share it; set hydra.sweep.dir instead")
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise CocosegError(str(error).splitlines()[0]) from error
    settings = convert(values, kind)
    if isinstance(settings, Config):
        if settings.ckpt_path is None and int(os.environ.get(RESTARTS) or 0):
            settings.resume = "auto"  # Slurm has started the job once more
        check(settings, may_download=may_download)
    elif isinstance(settings, PredictConfig):
        check_predict(settings)
    return settings


def _is_in_multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def refuse_several_in(config: Config) -> None:
    """Refuse several devices where their processes would not be of the same training.

    Raises:
        CocosegError: in the jobs of a sweep, which were seen to train other settings on each device in
            silence; or where every process would name a run folder of its own.
    """
    if not may_be_several(config.trainer):
        return
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN and hydra.launcher._target_.startswith(JOBS_IN_A_PROCESS):
        raise CocosegError(
            "trainer.devices, trainer.strategy: the processes of several devices would each run the whole "
            "sweep, and train different settings; start each job as a process of its own "
            "(hydra/launcher=local; of 8 GPUs hydra.launcher.n_jobs=2 gives each 4), or set trainer=default "
            "trainer.devices=1"
        )
    if has_launcher(config.trainer) and not (is_overridden("run_dir") or is_overridden("hydra.run.dir")):
        raise CocosegError(
            "run_dir: processes that torchrun or Slurm starts would each name a folder by the time; "
            "name one for all, as in run_dir=runs/first"
        )


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


def remember_failure(number: int, job: str, reason: str) -> None:
    """Have a job's failure listed when the process ends; the last word about a job counts."""
    if not _failed:
        atexit.register(_list_failures)
    _failed[number] = f"{job}: {reason}"


def _list_failures() -> None:
    jobs = "job" if len(_failed) == 1 else "jobs"
    _say(f"{len(_failed)} {jobs} failed:\n  " + "\n  ".join(_failed.values()))


def _say(message: str) -> None:
    print(message, file=sys.stderr)
