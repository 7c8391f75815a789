"""The settings as people read them: `--help` of the programs, and the tables of docs/settings.md.

Both are made from the declarations in config.py and the values in conf/.
`python -m cocoseg.config_help` writes docs/settings.md anew. No torch.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from msgspec import inspect
from omegaconf import OmegaConf

from cocoseg.config import NAMED, PROGRAMS, Config, EvaluateConfig
from cocoseg.config_checks import Setting, declarations, shown

PAGE = Path("docs", "settings.md")
COLUMN = 36  # characters of `key=value`
WIDTH = 100  # characters of a line of help
ALL = "--help-all"  # option that lists every setting
INTRODUCTION = """\
# Settings

Every setting is an override on the command line, `python train.py data.batch_size=32`, or a line of a YAML
file in `conf/`. prepare.py and evaluate.py take the settings of train.py too.

Arguments of network, loss, optimizer, trainer, loggers and callbacks depend on the preset, and are not on
this page: `python train.py --help-all` lists those of the chosen presets, and `conf/` holds all. One of them
is the learning rate, `optimizer.lr`: 0.001 with `optimizer=adam`. Defaults of `data` are of `data=coco`.

This page is made from the declarations in `src/cocoseg/config.py` and the values in `conf/`, by `make docs`.
"""
# Settings of `--help`; ALL lists the others too. A program of FEW settings lists all.
USUAL = {
    *("seed", "run_dir", "resume", "model", "loss", "optimizer", "trainer", "logger", "callbacks", "export"),
    *("model.base_channels", "model.depth", "model.encoder", "model.weights", "loss.class_weights"),
    *("optimizer.lr", "optimizer.weight_decay", "trainer.max_time", "trainer.max_epochs"),
    *("trainer.accelerator", "trainer.devices", "trainer.precision"),
    *("data.root", "data.images", "data.annotations", "data.val_images", "data.val_annotations"),
    *("data.image_size", "data.batch_size", "data.val_fraction", "data.labels", "data.subset.size"),
    *("data.subset.categories", "masks.overlap", "prepare.workers", "schedule.name", "budget.until"),
    *("sweep.trials", "sweep.total_time"),
}
FEW = 25
# Beginnings of the keys that are listed for a program, where it takes more.
LISTED = {
    "prepare": ("seed", "run_dir", "data", "masks", "prepare"),
    "evaluate": tuple(declarations(EvaluateConfig).keys() - declarations(Config).keys()),
}


def help_text(
    program: str, purpose: str, folders: Sequence[Path], overrides: Sequence[str] = (), *, rare: bool = False
) -> str:
    """The help of a program: its purpose and examples, then a line per setting: key=value, meaning.

    Args:
        program: name of its file in conf/.
        purpose: what it does, and examples.
        folders: conf/, then those that the user added.
        overrides: of the command line; their values are shown.
        rare: list all settings, not only the USUAL ones.
    """
    values, presets = _compose(program, folders, overrides), options(folders)
    chosen = values["hydra"]["runtime"]["choices"]
    comments = _comments(folders[0], chosen)
    lines, hidden = [purpose.strip(), ""], 0
    groups = list(_groups(program))
    rare = rare or sum(len(settings) for _, _, settings in groups) <= FEW
    for group, about, settings in groups:
        lines += [f"{group}: {about}"] if group and rare else []
        for key, value, meaning in _lines(settings, values, comments):
            if rare or key in USUAL:
                lines.append(_entry(f"{key}={value}", meaning))
            else:
                hidden += 1
    several = [group for group in presets if group in chosen and len(presets[group]) > 1]
    lines += ["", *(["presets:"] if several else [])]
    lines += [_entry(f"{group}={', '.join(presets[group])}", "", 4) for group in several]
    lines += ["", *([f"python {program}.py {ALL} lists {hidden} more settings."] if hidden else [])]
    lines += [f"python {program}.py --hydra-help lists the options of Hydra, as -m and --cfg."]
    return "\n".join(lines)


def _lines(
    settings: dict[str, Setting], values: dict[str, Any], comments: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Key, value and meaning of each setting, and of each argument of a part that users swap."""
    for key, setting in settings.items():
        choices = setting.allowed.removeprefix("one of ")
        meaning = f"{setting.meaning} ({choices})" if choices != setting.allowed else setting.meaning
        yield key, _value(key, setting, values), meaning
        if inspect.DictType in setting.types and key in values["hydra"]["runtime"]["choices"]:
            for name, value in _arguments(values[key] or {}):
                comment = comments.get(f"{key}.{name.rpartition('.')[2]}", "")
                yield f"{key}.{name}", shown(value), comment


def _arguments(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The arguments of a part, or of each part that a node names, with their values."""
    for name, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            yield from _arguments(value, f"{name}.")
        elif name != "_target_":
            yield f"{prefix}{name}", value


def _comments(conf: Path, chosen: dict[str, str | None]) -> dict[str, str]:
    """Comments behind values in YAML files, first those of chosen presets: `model.depth` -> its meaning."""
    found: dict[str, str] = {}
    paths = sorted(conf.glob("*/*.yaml"), key=lambda path: (chosen.get(path.parent.name) != path.stem, path))
    for path in paths:
        for name, comment in re.findall(r"^ *(\w+):.*?\s# (.+)$", path.read_text("utf-8"), re.MULTILINE):
            found.setdefault(f"{path.parent.name}.{name}", comment)
    return found


def options(folders: Iterable[Path]) -> dict[str, list[str]]:
    """The options of each config group below some folders: `model` -> [unet, …]."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/**/*.yaml")):
            found.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path.stem)
    return found


def page(conf: Path) -> str:
    """The content of docs/settings.md.

    Args:
        conf: folder of YAML files.
    """
    lines, presets = [INTRODUCTION], options([conf])
    for program in ("train", "evaluate", "predict"):
        values = _compose(program, [conf])
        lines += [f"## {program}.py", ""]
        for _, about, settings in _groups(program):
            lines += [about, ""] if about else []
            lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
            for key, setting in settings.items():
                default = _value(key, setting, values)
                preset = f"a preset ({', '.join(presets[key])}), or " if key in presets else ""
                lines.append(f"| `{key}` | `{default}` | {preset}{setting.allowed} | {setting.meaning} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(page(Path("conf")), encoding="utf-8")


def _compose(program: str, folders: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of a program and of Hydra, interpolations as they are written."""
    conf, *added = (folder.absolute() for folder in folders)
    search = f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in added)}]"
    with initialize_config_dir(str(conf), version_base="1.3"):
        values = compose(program, [search, *overrides], return_hydra_config=True)
    plain: Any = OmegaConf.to_container(values, resolve=False)
    return plain


def _groups(program: str) -> Iterator[tuple[str, str, dict[str, Setting]]]:
    """Name, description and settings: single settings first, under no name, then those of each group."""
    declared = declarations(PROGRAMS[program])
    groups = {key: setting.group for key, setting in declared.items() if setting.group is not None}
    for name, about in {"": "", **groups}.items():
        listed = {
            key: setting
            for key, setting in declared.items()
            if key.rpartition(".")[0] == name
            and setting.group is None
            and key.startswith(LISTED.get(program, ""))
        }
        if listed:
            yield name, about, listed


def _value(key: str, setting: Setting, values: dict[str, Any]) -> str:
    """The composed value as text: of a node its preset; the declared default where the group is null."""
    chosen = values["hydra"]["runtime"]["choices"]
    *groups, name = key.split(".")
    group = reduce(getitem, groups, values)
    value = setting.default if group is None else chosen.get(key, group[name])
    if key in NAMED and isinstance(value, dict):  # several options
        value = list(value)
    text = shown(value).replace("${now:%Y-%m-%d}_${now:%H-%M-%S}", "<date>_<time>")
    return re.sub(r"\$\{([\w.]+)\}", r"<\1>", text)


def _entry(left: str, right: str, indent: int = COLUMN + 4) -> str:
    text = f"  {left.ljust(COLUMN)}  {right}".rstrip()
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
