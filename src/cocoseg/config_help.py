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
from omegaconf import OmegaConf

from cocoseg.config import PROGRAMS, Config, EvaluateConfig
from cocoseg.config_checks import Setting, declarations, shown

PAGE = Path("docs", "settings.md")
COLUMN = 36  # characters of `key=value`
WIDTH = 130  # characters of a line of help
INTRODUCTION = """\
# Settings

Every setting is an override on the command line, `python train.py data.batch_size=32`, or a line of a YAML
file in `conf/`. This page is made from the declarations in `src/cocoseg/config.py` and the values in `conf/`,
by `make docs`. prepare.py and evaluate.py take the settings of train.py too.
"""
# Beginnings of the keys that are listed for a program, where it takes more.
LISTED = {
    "prepare": ("seed", "run_dir", "data", "masks", "prepare"),
    "evaluate": tuple(declarations(EvaluateConfig).keys() - declarations(Config).keys()),
}


def help_text(program: str, purpose: str, folders: Sequence[Path], overrides: Sequence[str] = ()) -> str:
    """The help of a program: its purpose and examples, then a line per setting: key=value, meaning.

    Args:
        program: name of its file in conf/.
        purpose: what it does, and examples.
        folders: conf/, then those that the user added.
        overrides: of the command line; their values are shown.
    """
    values, presets = _compose(program, folders, overrides), options(folders)
    chosen = values["hydra"]["runtime"]["choices"]
    lines = [purpose.strip(), ""]
    for group, about, settings in _groups(program):
        lines += [f"{group}: {about}"] if group else []
        for key, setting in settings.items():
            choices = setting.allowed.removeprefix("one of ")
            meaning = f"{setting.meaning} ({choices})" if choices != setting.allowed else setting.meaning
            lines.append(_entry(f"{key}={_value(key, setting, values)}", meaning))
            if key in chosen and values[key]:
                arguments = [
                    f"{name}={shown(value)}" for name, value in values[key].items() if name != "_target_"
                ]
                text = " ".join([f"{key}.*:", *arguments])
                lines.append(_entry("", textwrap.shorten(text, WIDTH - COLUMN - 4, placeholder=" …")))
    several = [group for group in presets if group in chosen and len(presets[group]) > 1]
    lines += ["", "presets:", *(f"  {group}={', '.join(presets[group])}" for group in several)]
    lines += ["", f"python {program}.py --hydra-help lists the options of Hydra, as -m and --cfg."]
    return "\n".join(lines)


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
    lines = [INTRODUCTION]
    for program in ("train", "evaluate", "predict"):
        values = _compose(program, [conf])
        lines += [f"## {program}.py", ""]
        for _, about, settings in _groups(program):
            lines += [about, ""] if about else []
            lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
            for key, setting in settings.items():
                default = _value(key, setting, values)
                lines.append(f"| `{key}` | `{default}` | {setting.allowed} | {setting.meaning} |")
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
    return OmegaConf.to_container(values, resolve=False)


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
    """A setting as it is composed; of a node the option, of a group that is off its declared default."""
    chosen = values["hydra"]["runtime"]["choices"]
    *groups, name = key.split(".")
    group = reduce(getitem, groups, values)
    value = setting.default if group is None else chosen.get(key, group[name])
    text = shown(value).replace("${now:%Y-%m-%d}_${now:%H-%M-%S}", "<date>_<time>")
    return re.sub(r"\$\{([\w.]+)\}", r"<\1>", text)


def _entry(left: str, right: str) -> str:
    return textwrap.fill(
        right,
        WIDTH,
        initial_indent=f"  {left.ljust(COLUMN)}  ",
        subsequent_indent=" " * (COLUMN + 4),
        break_long_words=False,
    )


if __name__ == "__main__":
    main()
