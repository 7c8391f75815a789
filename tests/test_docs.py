"""README and docs/: the commands, files and code that they show are those of the project."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from cocoseg.config import PROGRAMS
from cocoseg.config_help import options
from cocoseg.overrides import check_overrides, force_new_keys
from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
]
PAGES += [page for page in (ROOT / "docs").glob("*.md") if page.name != "LOG.md"]  # the log is history
OPTIONS = options([ROOT / "conf"])
SOURCE = ROOT / "src" / "cocoseg"
ROOMS = "|".join(sorted({path.parent.name for path in SOURCE.glob("*/__init__.py")}))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The `python <program>.py …` lines of the code blocks: program and overrides."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if program := re.search(rf"\b({'|'.join(PROGRAMS)})\.py ", line):
                words = shlex.split(line[program.end() :], comments=True)
                found.append((program[1], [word for word in words if not word.startswith("-")]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_use_settings_and_presets_that_exist(page: Path):
    for program, overrides in commands(page):
        check_overrides(force_new_keys(overrides, PROGRAMS[program]), PROGRAMS[program], OPTIONS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = re.findall(rf"`(?:src/cocoseg/)?((?:{ROOMS})/\w+\.py)`", text)
    assert not [path for path in paths if not (SOURCE / path).is_file()]


def test_every_figure_in_docs_is_shown():
    shown = "".join(page.read_text() for page in PAGES)
    figures = [path for suffix in ("png", "svg") for path in (ROOT / "docs").glob(f"*.{suffix}")]
    assert not [path.name for path in figures if f"{path.name})" not in shown]


def test_architecture_quotes_the_recipe():
    code = (SOURCE / "training" / "recipe.py").read_text()
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    recipe = ast.get_source_segment(code, next(node for node in functions if node.name == "train"))
    assert f"```python\n{recipe}\n```" in (ROOT / "docs" / "architecture.md").read_text()
