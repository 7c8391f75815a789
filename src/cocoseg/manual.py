"""The settings as people read them: `--help` of the programs, and the tables of docs/settings.md.

`python -m cocoseg.manual` writes that file anew. No torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cocoseg.config import Config, EvaluateConfig, PredictConfig, Settings
from cocoseg.settings import as_dict, declarations, shown

PAGE = Path("docs", "settings.md")
COLUMN = 36  # characters of `key=value`
LONGEST = 130  # characters of a line of help
INTRODUCTION = """\
# Settings

Every setting is an override on the command line, `python train.py data.batch_size=32`, or a line of a YAML
file in `conf/`. This page is made from the declarations in `src/cocoseg/config.py`, by `make docs`.
"""
# Beginnings of the keys that the help of a program lists, where it does not list all that it takes.
LISTED = {
    "prepare": ("seed", "run_dir", "data.", "masks.", "prepare."),
    "evaluate": tuple(name for name in declarations(EvaluateConfig) if name not in declarations(Config)),
}


def help_of_settings(kind: type[Settings], program: str, values: DictConfig) -> str:
    """The settings of a program, a line each: key, value as composed, meaning.

    Args:
        kind: its settings.
        program: its name.
        values: as composed.
    """
    lines: list[str] = []
    for title, keys in _groups(kind):
        listed = [key for key in keys if key.startswith(LISTED.get(program, ""))]
        if title and listed:
            lines.append(f"{title.rstrip('.')}:")
        lines += [_line(kind, key, values) for key in listed]
    return "\n".join(lines).replace("$", "$$")  # Hydra fills in $NAME


def page() -> str:
    """The content of docs/settings.md."""
    parts = [INTRODUCTION]
    for heading, kind, inherited in (
        ("train.py, prepare.py and evaluate.py", Config, ()),
        ("evaluate.py alone", EvaluateConfig, declarations(Config)),
        ("predict.py", PredictConfig, ()),
    ):
        parts.append(f"\n## {heading}\n")
        for title, keys in _groups(kind):
            own = [key for key in keys if key not in inherited]
            if own:
                parts += [f"\n{title}\n" if title else "", *_table(kind, own)]
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def _groups(kind: type[Settings]) -> Iterator[tuple[str, list[str]]]:
    """Single settings first, under no title; then each group's under its own."""
    declared = declarations(kind)
    groups = {key: group for key, one in declared.items() if (group := one.group)}
    yield "", [key for key in declared if "." not in key and key not in groups]
    for name, group in groups.items():
        prefix = f"{name}."
        own = [key for key in declared if key.startswith(prefix) and key not in groups]
        yield (group.__doc__ or "").strip(), [key for key in own if key.rpartition(".")[0] == name]


def _line(kind: type[Settings], key: str, values: DictConfig) -> str:
    setting, parent = declarations(kind)[key], key.rpartition(".")[0]
    is_off = parent and OmegaConf.select(values, parent) is None
    value = _default(kind, key) if is_off else OmegaConf.select(values, key)
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    meaning = setting.description
    if setting.is_node and isinstance(value, dict) and value:
        arguments = [f"{name}={shown(one)}" for name, one in value.items() if name != "_target_"]
        key, text = f"{key}.*", f"{meaning}: {' '.join(arguments)}"
    else:
        key = f"{key}={_cut(shown(value), COLUMN - len(key) - 1)}"
        text = f"{meaning} ({setting.choices})" if setting.choices else meaning
    return _cut(f"  {key.ljust(COLUMN)}  {text}", LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _table(kind: type[Settings], keys: list[str]) -> Iterator[str]:
    yield "| key | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        declared = declarations(kind)[key]
        default = declared.note("default") or shown(_default(kind, key))
        cells = [f"`{key}`", f"`{default}`", declared.allowed, declared.description]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _default(kind: type[Settings], key: str) -> Any:
    """The default of a setting; of a group that is null by default, what it is once the group is given."""
    parent, _, name = key.rpartition(".")
    group = declarations(kind)[parent].group if parent else None
    return as_dict((group or kind)())[name]


if __name__ == "__main__":
    main()
