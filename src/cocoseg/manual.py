"""The settings as people read them: `--help` of the programs, and the tables of docs/settings.md.

Both are made from the declarations in config.py and the values in conf/. `python -m cocoseg.manual` writes
docs/settings.md anew. No torch.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cocoseg.config import Config, EvaluateConfig, PredictConfig, Settings
from cocoseg.settings import declarations, shown

PAGE = Path("docs", "settings.md")
COLUMN = 36  # characters of `key=value`
LONGEST = 130  # characters of a line of help
INTRODUCTION = """\
# Settings

Every setting is an override on the command line, `python train.py data.batch_size=32`, or a line of a YAML
file in `conf/`. This page is made from the declarations in `src/cocoseg/config.py` and the values in `conf/`,
by `make docs`.
"""
# Beginnings of the keys that the help of a program lists, where it does not list all that it takes.
LISTED = {
    "prepare": ("seed", "run_dir", "data", "masks", "prepare"),
    "evaluate": tuple(name for name in declarations(EvaluateConfig) if name not in declarations(Config)),
}
SET_BY_SWEEPS = ("sweep.method", "sweep.trial")  # never typed


def help_text(
    program: str,
    kind: type[Settings],
    introduction: str,
    folders: Sequence[Path],
    overrides: Sequence[str] = (),
) -> str:
    """The help of a program: its purpose and examples, then a line per setting: key=value, meaning.

    Args:
        program: name of its file in conf/.
        kind: its settings.
        introduction: purpose and examples.
        folders: conf/, then those that the user added.
        overrides: of the command line; their values are shown.
    """
    values = _composed(program, folders, overrides)
    presets = options(folders)
    lines = [introduction.strip(), ""]
    for name, about, keys in _groups(kind):
        listed = [key for key in keys if key.startswith(LISTED.get(program, "")) and key not in SET_BY_SWEEPS]
        if name and listed:
            choices = f" Presets: {name}={', '.join(presets[name])}" if len(presets.get(name, ())) > 1 else ""
            lines.append(_cut(f"{name}: {about}{choices}"))
        for key in listed:
            lines += _lines(kind, key, values, presets.get(key, []))
        if not name and kind is Config:
            experiments = ", ".join(presets["experiment"])
            lines.append(_entry("experiment=null", f"many settings at once: {experiments}"))
    return "\n".join(
        [*lines, "", f"python {program}.py --hydra-help lists the options of Hydra, as -m and --cfg."]
    )


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
    parts = [INTRODUCTION]
    for heading, program, kind, inherited in (
        ("train.py, prepare.py and evaluate.py", "train", Config, ()),
        ("evaluate.py alone", "evaluate", EvaluateConfig, declarations(Config)),
        ("predict.py", "predict", PredictConfig, ()),
    ):
        values = _composed(program, [conf])
        parts.append(f"\n## {heading}\n")
        for _, about, keys in _groups(kind):
            own = [key for key in keys if key not in inherited]
            if own:
                parts += [f"\n{about}\n" if about else "", *_table(kind, own, values)]
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def main() -> None:
    PAGE.write_text(page(Path("conf")), encoding="utf-8")


def _composed(program: str, folders: Sequence[Path], overrides: Sequence[str] = ()) -> DictConfig:
    conf, *added = (folder.absolute() for folder in folders)
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in added)}]"] if added else []
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(program, [*search, *overrides], return_hydra_config=True)


def _groups(kind: type[Settings]) -> Iterator[tuple[str, str, list[str]]]:
    """Name, description and keys: single settings first, under no name, then those of each group."""
    declared = declarations(kind)
    single = [key for key, setting in declared.items() if setting.group is None]
    groups = {key: setting.group for key, setting in declared.items() if setting.group is not None}
    for name, about in {"": "", **groups}.items():
        yield name, about, [key for key in single if key.rpartition(".")[0] == name]


def _lines(kind: type[Settings], key: str, values: DictConfig, presets: Sequence[str]) -> Iterator[str]:
    """The setting's line; of a node a second one, with the arguments of its `_target_`."""
    setting = declarations(kind)[key]
    choices = f" ({setting.allowed.removeprefix('one of ')})" if "enum" in setting.schema else ""
    if setting.is_node and presets:
        choices = f": {', '.join(presets)}"
    yield _entry(f"{key}={_value(kind, key, values)}", setting.description + choices)
    if setting.is_node and presets and values[key]:
        arguments = OmegaConf.to_container(values[key], resolve=False)
        del arguments["_target_"]
        yield _entry("", f"{key}.*: " + " ".join(f"{name}={shown(one)}" for name, one in arguments.items()))


def _entry(left: str, right: str) -> str:
    return _cut(f"  {_cut(left, COLUMN).ljust(COLUMN)}  {right}")


def _cut(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _table(kind: type[Settings], keys: list[str], values: DictConfig) -> Iterator[str]:
    yield "| key | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        declared = declarations(kind)[key]
        default = _value(kind, key, values)
        default = f"{key}={default}" if key in values.hydra.runtime.choices else default
        cells = [f"`{key}`", f"`{default}`", declared.allowed, declared.description]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(kind: type[Settings], key: str, values: DictConfig) -> str:
    """A setting as it is composed; of a node the option, of a group that is off its declared default."""
    choices = values.hydra.runtime.choices
    if key in choices:
        return shown(choices[key])
    parent = key.rpartition(".")[0]
    if parent and OmegaConf.select(values, parent) is None:
        return shown(declarations(kind)[key].schema["default"])
    group = OmegaConf.to_container(OmegaConf.select(values, parent) if parent else values, resolve=False)
    text = shown(group[key.rpartition(".")[2]])
    text = text.replace("${now:%Y-%m-%d}_${now:%H-%M-%S}", "<date>_<time>")
    return re.sub(r"\$\{([\w.]+)\}", r"<\1>", text)


if __name__ == "__main__":
    main()
