"""`from_run=<folder>`: the settings of an earlier run, below what is typed. No torch.

The file they come from may be anybody's. It chooses neither what is imported nor where anything is written.
"""

import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cocoseg.config import Config, Settings
from cocoseg.config_checks import convert
from cocoseg.errors import CocosegError, first_line
from cocoseg.evaluation.training_settings import keep_places, move_paths, read_settings
from cocoseg.files import from_here
from cocoseg.overrides import command, key_of
from cocoseg.run_folder import CONFIG

log = logging.getLogger(__name__)

KEY = "from_run"
# Settings that are not taken over, such as where the run wrote and how it was resumed.
STAYING = (
    *(KEY, "run_dir", "ckpt_path", "resume", "sweep", "logger", "budget.extend", "budget.until"),
    *("data.download", "data.annotations_url", "data.images_url"),
)
# Classes and functions that a file may name: ours, torch's, torchvision's and Lightning's, and of these none
# that runs code from its arguments. PLACE keeps a file from naming a path to write to.
HARMLESS = re.compile(
    r"cocoseg\.((losses|unet|residual|resnet_unet)\.)?[A-Z]\w*"
    r"|torch\.(nn|optim|optim\.lr_scheduler)\.[A-Z]\w*"
    r"|torchvision\.(models(\.segmentation)?\.\w+|transforms\.v2\.[A-Z]\w*)"
    r"|lightning\.(pytorch\.)?Trainer|lightning\.pytorch\.(callbacks|profilers)\.[A-Z]\w*"
)
PLACE = re.compile(r"\w*(dir|path|file|filename|folder|uri|url)")  # arguments that say where to write


def keep_own_places(config: DictConfig) -> DictConfig:
    """Return a composed configuration whose `from_run`, if any, does not choose where masks are written.

    Raises:
        CocosegError: the data set of shapes that the run drew is not there any more.
    """
    keys = list(map(key_of, command().overrides))
    if config[KEY] is not None and "data" not in keys:
        keep_places(config, keys)
    return config


def _compose_from_runs() -> None:
    """Make Hydra put the settings of the run `from_run` below the overrides, wherever it composes.

    Hydra 1.3 has no interface for that. As a preset, the run's model would be merged with a typed `model=`.
    """
    loader: Any = ConfigLoaderImpl  # some of whose methods are replaced
    compose, apply = loader.load_configuration, loader._apply_overrides_to_config

    def load(self: Any, config_name: str, overrides: list[str], *others: Any, **named: Any) -> DictConfig:
        parsed = OverridesParser.create().parse_overrides(overrides)
        typed = {key_of(str(override.input_line)): override for override in parsed}

        def apply_on_top(given: list[Override], config: DictConfig) -> None:
            withheld = _take_settings(config, typed)
            apply(given, config)
            _require_targets(config, withheld)

        if KEY in typed and _first_value(typed[KEY]) is not None:
            loader._apply_overrides_to_config = staticmethod(apply_on_top)
        try:
            return compose(self, config_name, overrides, *others, **named)
        finally:
            loader._apply_overrides_to_config = staticmethod(apply)

    loader.load_configuration = load


def _first_value(override: Override) -> Any:
    """The value that an override sets; the first one, where a multirun gives its jobs several."""
    if override.is_sweep_override():
        override = OverridesParser.create().parse_override(f"x={next(override.sweep_string_iterator())}")
    return override.value()


def _take_settings(config: DictConfig, typed: Mapping[str, Override]) -> dict[str, str]:
    """Put the settings of a run in place of those of the presets that are not typed.

    Args:
        config: composed of the presets; it is changed.
        typed: overrides by key.

    Returns:
        Each `_target_` that a file may not choose, by the key of its node; there it is null.

    Raises:
        CocosegError: the folder is not that of a training, or its settings don't fit this version.
    """
    if "experiment" in typed:
        raise CocosegError(f"{KEY}, experiment: both choose all settings; leave out one of them")
    folder = Path(str(_first_value(typed[KEY]))).expanduser()
    path = folder / CONFIG
    settings = read_settings(path) if path.is_file() else None
    if settings is None or settings.pop("program", "train") != "train":
        runs = sorted(folder.glob(f"*/{CONFIG}"))
        hint = f"; name one of its runs, as in {KEY}={runs[0].parent}" if runs else f": it has no {CONFIG}"
        raise CocosegError(f"{KEY}: {folder} is not the folder of a training{hint}")
    # A typed preset, as in model=unet, replaces the run's.
    settings = {key: value for key, value in settings.items() if key not in typed}
    withheld: dict[str, str] = {}
    try:
        checked = convert(settings, Config)
        for key in STAYING:
            group, _, name = key.rpartition(".")
            node = settings.get(group, {}) if group else settings
            if not group or node.get(name) is not None:  # a null names no place, so it is taken over
                node.pop(name, None)
        if "data.root" in typed and "data" in settings:
            settings["data"] |= move_paths(settings["data"], str(_first_value(typed["data.root"])))
        with open_dict(config):
            for key, value in settings.items():
                _withhold(value, key, withheld)
                is_group = isinstance(getattr(checked, key), Settings)
                config[key] = OmegaConf.merge(config[key], value) if is_group else value
    except (CocosegError, OmegaConfBaseException) as error:
        raise CocosegError(f"{from_here(path)}: {first_line(error)}") from error
    return withheld


def _withhold(value: Any, key: str, withheld: dict[str, str]) -> None:
    """Set to null what a file may not choose: where to write, and a `_target_`, which is noted."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            _withhold(one, f"{key}[{index}]", withheld)
    if isinstance(value, dict):
        for name, one in value.items():
            if one is None:
                continue
            if name == "_target_" and not HARMLESS.fullmatch(str(one)):
                withheld[key] = str(one)
                value[name] = None
            elif PLACE.fullmatch(str(name)) and key != "data":
                log.warning(
                    "%s.%s: no file may choose a place to write to, so it is null; type it if it is needed",
                    key,
                    name,
                )
                value[name] = None
            else:
                _withhold(one, f"{key}.{name}", withheld)


def _require_targets(config: DictConfig, withheld: Mapping[str, str]) -> None:
    """Raise CocosegError where a `_target_` that a file may not choose has not been typed."""
    again = []
    for key, target in withheld.items():
        node = OmegaConf.select(config, key, default=None)
        if isinstance(node, DictConfig) and node.get("_target_", "") is None:
            typed, bracket, _ = key.partition("[")
            again.append(f"{typed}=…" if bracket else shlex.quote(f"{key}._target_={target}"))
    if again:
        raise CocosegError(
            f"{KEY}: no file may choose the code that runs, beyond that of this program, torch, torchvision "
            f"and Lightning; type it again: {' '.join(again)}"
        )


_compose_from_runs()  # at import, so that processes in which jobs run compose in the same way
