"""Overrides of the command line: keys, those that a sweep chose, and those that are refused. No torch."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from msgspec import inspect
from omegaconf import DictConfig
from yaml import YAMLError

from cocoseg.config import NAMED, Settings
from cocoseg.config_checks import ELSEWHERE, REMOVED, declarations, unknown_key
from cocoseg.durations import BEGAN, command_begin
from cocoseg.errors import CocosegError, name_programs
from cocoseg.files import read_yaml

SWEPT = "COCOSEG_SWEPT"  # environment variable: the keys that a multirun chooses, as a JSON list
# Keys that may change when a sweep is resumed: its size, time limits and name.
MAY_CHANGE = ("sweep.trials", "sweep.total_time", "sweep.name", "budget.until")


@dataclass(frozen=True)
class Command:
    """The overrides of a run.

    Attributes:
        overrides: as typed; in a trial, without those that are about its sweep.
        swept: those of them that the sweep chose.
        choices: option of each config group.
    """

    overrides: tuple[str, ...] = ()
    swept: tuple[str, ...] = ()
    choices: Mapping[str, str | None] = field(default_factory=dict)

    def __str__(self) -> str:
        """The command line, quoted for a shell."""
        return name_programs(shlex.join(["python", "train.py", *self.overrides]))


def command() -> Command:
    """The command of the job in progress."""
    job = HydraConfig.get()
    overrides = tuple(job.overrides.task)
    keys = json.loads(os.environ.get(SWEPT, "[]"))
    if "sweep.trial" in map(key_of, overrides):  # the sweeper has added settings of its own
        own = ("sweep", "resume")
        overrides = tuple(item for item in overrides if key_of(item) in keys or not item.startswith(own))
    swept = tuple(override for override in overrides if key_of(override) in keys)
    return Command(overrides, swept, {str(group): option for group, option in job.runtime.choices.items()})


def is_overridden(key: str) -> bool:
    """Tell whether a key is set on the command line."""
    given = HydraConfig.get().overrides
    return key in map(key_of, [*given.task, *given.hydra])


def pass_to_jobs(config: DictConfig) -> None:
    """Pass the keys that a multirun chooses, and its beginning, to its jobs, in whichever process they run.

    A job can't find the keys: its override is `lr=0.001` whether `lr=1e-3` or `lr=1e-3,1e-2` was typed.

    Args:
        config: of the multirun, Hydra's own included.
    """
    typed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    keys = [key_of(str(override.input_line)) for override in typed if override.is_sweep_override()]
    configured = [config.get("sweep", {}).get("space"), config.hydra.sweeper.get("params")]
    keys += [key_of(str(key)) for space in configured for key in space or {}]
    os.environ.update({SWEPT: json.dumps(keys), BEGAN: str(command_begin())})


def key_of(override: str) -> str:
    """The key, or the config group, that an override sets: `++data.root=x` -> `data.root`."""
    return override.lstrip("+~").partition("=")[0]


def quote_paths(arguments: Sequence[str], kind: type[Settings], *, in_multirun: bool) -> list[str]:
    """Quote paths that Hydra's grammar can't read, as in checkpoint=epoch=3-step=20.ckpt.

    `~` in them becomes the home folder, because shells leave it as it is within a word.

    Args:
        arguments: of the command line.
        kind: settings of the program.
        in_multirun: commas separate the values of jobs.
    """
    parser, texts = OverridesParser.create(), _texts(kind)
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") in texts and value and not _is_readable(parser, argument):
            parts = map(os.path.expanduser, value.split(",") if in_multirun else [value])
            other = f"{key}={','.join(map(_in_quotes, parts))}"
            argument = other if _is_readable(parser, other) else argument
        quoted.append(argument)
    return quoted


def force_new_keys(arguments: Sequence[str], kind: type[Settings]) -> list[str]:
    """Put `++` before keys that conf/ can't hold: parts that users name, arguments of a typed `_target_`."""
    known, typed = {*declarations(kind), *REMOVED}, set(map(key_of, arguments))
    own = {key.removesuffix("_target_") for key in typed if key.endswith("._target_")}
    prefixes = (*(f"{name}." for name in NAMED), *own)
    return [
        f"++{argument}" if argument.startswith(prefixes) and key_of(argument) not in known else argument
        for argument in arguments
    ]


def _texts(kind: type[Settings]) -> set[str]:
    """Keys of settings that are text, paths above all."""
    declared = declarations(kind).items()
    own = {key for key, setting in declared if inspect.StrType in setting.types and setting.group is None}
    return own | {"model.weights", "hydra.run.dir", "hydra.sweep.dir"}


def _is_readable(parser: OverridesParser, override: str) -> bool:
    try:
        parser.parse_override(override)
    except HydraException:
        return False
    return True


def quote_path(text: str) -> str:
    """Write a path as the value of an override: in Hydra's quotes, unless it can only be a path."""
    return text if re.fullmatch(r"[\w.-]*/[\w./-]*", text, re.ASCII) else _in_quotes(text)


def _in_quotes(text: str) -> str:
    """Put text in Hydra's quotes, in which a backslash stands for itself unless a quote follows."""
    escaped = re.sub(r"(\\*)(\'|$)", lambda end: 2 * end[1] + ("\\'" if end[2] else ""), text)
    return f"'{escaped}'"


def preset_arguments(folders: Iterable[Path], kind: type[Settings]) -> dict[str, list[str]]:
    """Arguments of the parts that users swap: `model.depth` -> the presets that name it, `unet`, …"""
    parts = {key for key, setting in declarations(kind).items() if setting.group is None}
    found: dict[str, list[str]] = {}
    paths = [path for folder in folders for path in sorted(folder.glob("*/*.yaml"))]
    for path in [path for path in paths if path.parent.name in parts]:
        with suppress(OSError, ValueError, YAMLError):
            for name in set(read_yaml(path) or ()) - {"_target_", "defaults"}:
                found.setdefault(f"{path.parent.name}.{name}", []).append(path.stem)
    return found


def check_overrides(
    overrides: Sequence[str],
    kind: type[Settings],
    options: Mapping[str, Collection[str]],
    folders: Sequence[Path] = (),
) -> None:
    """Refuse keys and options that are gone or unknown, forced keys (`+key=`) too.

    Keys inside nodes are known only once Hydra has composed them.

    Args:
        overrides: as typed.
        kind: settings of the program.
        options: of each config group.
        folders: of YAML files, whose keys may have been meant.

    Raises:
        CocosegError: names the key, and what takes its place or what may have been meant.
    """
    if any(key_of(override) == "hydra.searchpath" for override in overrides):
        return  # Hydra alone knows what there is
    declared = declarations(kind)
    nodes = tuple(f"{key}." for key, setting in declared.items() if inspect.DictType in setting.types)
    groups = {group.partition("/")[0] for group in options}
    for override in overrides:
        key = key_of(override).partition("@")[0].removeprefix("sweep.space.")
        is_known = key in declared or key.startswith((*nodes, "hydra.")) or key.partition("/")[0] in groups
        # A preset may name a part of the user's own, which knows the key.
        is_known |= override.startswith("+") and f"{key.partition('.')[0]}._target_" in declared
        if key in REMOVED or not is_known or ".".join(key.split(".")[:2]) in ELSEWHERE:
            raise CocosegError(unknown_key(key, kind, {*groups, *preset_arguments(folders, kind)}))
        if key in declared and declared[key].group and key not in options:
            raise CocosegError(f"{override}: {key} is {declared[key].allowed}")
        if key in options and not key.startswith("hydra/"):
            _check_options(key, override.partition("=")[2], options[key])


def _check_options(group: str, value: str, options: Collection[str]) -> None:
    """Refuse misspelt options of a group; sweep functions and null are left to Hydra."""
    for option in value.strip("[]").split(","):
        if re.fullmatch(r"\w[\w-]*", option) and option not in (*options, "null"):
            close = get_close_matches(option, options, n=1)
            hint = f"did you mean {group}={close[0]}?" if close else f"there are {', '.join(options)}"
            raise CocosegError(f"{group}={option}: no such preset; {hint}")


def sweep_folder(method: str | None, name: str | None, overrides: Sequence[str]) -> str:
    """`${sweep_folder:…}` of YAML files: the folder of a sweep.

    Args:
        method: of the search.
        name: chosen by the user; else the same command gives the same name.
        overrides: of the command line; those of MAY_CHANGE make no difference.
    """
    if name is not None:
        return name
    kept = sorted(item for item in overrides if key_of(item) not in MAY_CHANGE)
    return f"{method}_{hashlib.sha256(chr(10).join(kept).encode()).hexdigest()[:8]}"
