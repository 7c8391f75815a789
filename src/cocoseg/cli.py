"""The frame of the programs: command line, checked configuration, errors in one line and exit codes."""

import functools
import inspect
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal import utils as hydra_internals
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException

from cocoseg.config import PROGRAMS, Config, PredictConfig, Settings, conf_folder
from cocoseg.config_checks import convert, declarations, parameters_of, require_argument, unknown_key
from cocoseg.config_cross_checks import check, check_predict
from cocoseg.config_help import ALL, help_text, options
from cocoseg.durations import minutes
from cocoseg.errors import CocosegError, first_line, name_programs, one_line, report_errors, shows_traces
from cocoseg.overrides import (
    check_overrides,
    force_new_keys,
    is_overridden,
    preset_arguments,
    quote_paths,
    sweep_folder,
)
from cocoseg.rank_environment import has_launcher, may_be_several
from cocoseg.run_folder import record_refused_job
from cocoseg.workers import exit_code, stop_in_order, stop_with_launcher

INTERRUPTED = exit_code(signal.SIGINT)
RESTARTS = "SLURM_RESTART_COUNT"  # environment variable

Kind = TypeVar("Kind", bound=Settings)


class JobFailedError(CocosegError):
    """A job of a multirun failed; others may have succeeded."""

    exit_code = 1


OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
OmegaConf.register_new_resolver("minutes", minutes, replace=True)


def program(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function the main program that conf/<name>.yaml configures.

    `--help` begins with the docstring of its file.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        conf = conf_folder()
        run = hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(_job(main))

        @functools.wraps(main)
        def checked() -> None:
            arguments, _ = hydra_internals.get_args_parser().parse_known_args()
            sys.argv[1:] = readable(sys.argv[1:], name, in_multirun=arguments.multirun)
            if (own := arguments.config_path) and "://" not in own:  # Hydra would look below the package
                sys.argv.append(f"--config-path={Path(own).absolute()}")
            arguments, _ = hydra_internals.get_args_parser().parse_known_args()
            folders = [conf, *map(Path, filter(None, (arguments.config_dir, arguments.config_path)))]
            with report_errors(), hydra_errors_in_one_line(PROGRAMS[name], folders):
                if not arguments.shell_completion:  # its words are install= and the like
                    check_overrides(arguments.overrides, PROGRAMS[name], options(folders), folders)
                if arguments.help or ALL in sys.argv:
                    purpose, rare = inspect.getmodule(main).__doc__ or "", ALL in sys.argv
                    if hasattr(signal, "SIGPIPE"):
                        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` reads the beginning only
                    text = help_text(name, purpose, folders, arguments.overrides, rare=rare)
                    print(name_programs(text))
                else:
                    with composed_once(in_multirun=arguments.multirun):
                        run()

        return checked

    return decorate


def readable(arguments: Sequence[str], name: str, *, in_multirun: bool = False) -> list[str]:
    """Quote paths and mark new keys in the arguments of a program, so that Hydra can parse them."""
    kind = PROGRAMS[name]
    return force_new_keys(quote_paths(arguments, kind, in_multirun=in_multirun), kind)


@contextmanager
def composed_once(*, in_multirun: bool) -> Iterator[None]:
    """Make Hydra compose the configuration of a run once.

    Hydra 1.3 composes it to look up `hydra.mode`, and again to run it, which takes a third of a second.
    """
    patched: Any = Hydra
    get_mode = patched.get_mode

    def compose(hydra: Any, config_name: str, overrides: list[str]) -> RunMode | None:
        if in_multirun:
            return None  # Hydra gets the mode from -m
        try:
            config = hydra.compose_config(config_name, overrides, RunMode.RUN, with_log_configuration=True)
        except HydraException:
            if mode := get_mode(hydra, config_name, overrides):  # as sweep=tpe sets it
                return mode
            raise

        def take(**_: Any) -> DictConfig:
            del hydra.compose_config
            return config

        if config.hydra.mode != RunMode.MULTIRUN:
            hydra.compose_config = take
        return config.hydra.mode

    patched.get_mode = compose
    try:
        yield
    finally:
        patched.get_mode = get_mode


@contextmanager
def hydra_errors_in_one_line(kind: type[Settings], folders: Sequence[Path]) -> Iterator[None]:
    """Turn errors of Hydra about these settings and folders into a CocosegError.

    `run_and_report` of Hydra 1.3 prints an error in several lines and exits; here it lets the error pass.
    """
    run_and_report = hydra_internals.run_and_report
    hydra_internals.run_and_report = lambda func: func()
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise CocosegError(_sentence(error, kind, folders)) from error
    finally:
        hydra_internals.run_and_report = run_and_report


def _sentence(error: Exception, kind: type[Settings], folders: Sequence[Path]) -> str:
    """Describe the mistake in a command line that Hydra refuses, in one sentence."""
    cause = error.__cause__
    if isinstance(cause, ConfigTypeError) and (setting := declarations(kind).get(str(cause.full_key))):
        return f"{cause.full_key}: it must be {setting.allowed}"  # as for {…} in place of a list
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key = str(cause.full_key)
        node, presets = key.rpartition(".")[0], preset_arguments(folders, kind)
        if key in presets:
            return f"{key}: the chosen {node} has no such argument; {node}={', '.join(presets[key])} have it"
        known = {other for other in presets if not other.startswith(f"{node}.")}
        known |= {f"{node}.{name}" for name in map(str, cause.parent_node) if name != "_target_"}
        hint = unknown_key(key, kind, known) if cause.parent_node else f"{key}: not there yet"
        return hint if node == "trainer" else f"{hint} (+{key}=… adds it)"  # conf/ lists all of its arguments
    sentence = " ".join(str(error).partition("\nSee https://")[0].split())
    return f"{error.override}: {sentence}" if isinstance(error, OverrideParseException) else sentence


def _job(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn what goes wrong in `main` into one line on stderr and an exit code.

    A user's mistake ends a single run with 2. Inside a multirun the job raises instead, the others go on,
    and Hydra ends with 1; a list of what failed comes last.
    """

    @functools.wraps(main)
    def run(config: DictConfig) -> Any:
        stop_with_launcher()
        try:
            with stop_in_order(signal.SIGINT):
                return main(config)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            record_refused_job(config, end)  # a signal may have ended the job before its run began
            raise
        except Exception as error:
            record_refused_job(config, error)
            sentence = one_line(error)
            if _is_in_multirun() and sentence and not shows_traces():
                raise JobFailedError(sentence) from None
            with report_errors():
                raise

    return run


def resolve_config(config: DictConfig, kind: type[Kind], *, may_download: bool = False) -> Kind:
    """Turn a composed configuration into checked settings.

    Args:
        config: as Hydra composes it, without Hydra's own part.
        kind: Config, EvaluateConfig or PredictConfig.
        may_download: as in `cocoseg.config_cross_checks.check`.

    Raises:
        CocosegError: names the key.
    """
    folder = "output" if kind is PredictConfig else "run_dir"
    if _is_in_multirun() and is_overridden(folder):
        raise CocosegError(f"{folder}: the jobs of a multirun can't share it; set hydra.sweep.dir instead")
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise CocosegError(first_line(error)) from error
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


def refuse_several_devices(config: Config) -> None:
    """Refuse several devices where their processes would not take part in the same training.

    Raises:
        CocosegError: in a multirun whose jobs share a process, where each device would train other
            settings; or where each process would name a run folder of its own.
    """
    if not may_be_several(config.trainer):
        return
    if _is_in_multirun():
        raise CocosegError(
            "trainer.devices: a job on several devices needs a process of its own; add hydra/launcher=local "
            "(of 8 GPUs hydra.launcher.n_jobs=2 gives each job 4), or set trainer=default trainer.devices=1"
        )
    if has_launcher(config.trainer) and not (is_overridden("run_dir") or is_overridden("hydra.run.dir")):
        raise CocosegError(
            "run_dir: processes that torchrun or Slurm starts would each name a folder by the time; "
            "name one for all, as in run_dir=runs/first"
        )


def build(node: Any, key: str, *positional: Any, kind: type = object, **named: Any) -> Any:
    """Instantiate the `_target_` of a configuration node, with further arguments.

    Args:
        kind: class that the result must be an instance of.

    Raises:
        CocosegError: names the key and what went wrong.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise CocosegError(f"{key}: no _target_ in it, the class or function to call")
    try:
        built = instantiate(node, *positional, _convert_="all", **named)
    except InstantiationException as error:
        cause = " ".join(str(error.__cause__ or error).split())
        if cause.startswith("Error loading"):
            parameters_of(node["_target_"], key)  # raises a shorter message than Hydra's
        unknown = re.search(r"unexpected keyword argument '(\w+)'", cause)
        if unknown and unknown[1] in node:
            require_argument(unknown[1], node["_target_"], key)
        given = ", ".join(f"{name}={value!r}" for name, value in node.items() if name != "_target_")
        given = textwrap.shorten(given, 80, placeholder="…")
        raise CocosegError(f"{key}: {cause} (from {node['_target_']}({given}))") from error
    if not isinstance(built, kind):
        made, wanted = type(built).__name__, f"{kind.__name__} of {kind.__module__.partition('.')[0]}"
        raise CocosegError(f"{key}: {node['_target_']} makes a {made}; it must make a {wanted}")
    return built
