"""README and docs/: the commands, files and code that they show are those of the project."""

import ast
import re
import shlex
import tomllib
from itertools import chain
from pathlib import Path

import pytest

import cocoseg
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
LINKED = [*PAGES, ROOT / "docs" / "LOG.md", *(ROOT / "benchmarks").glob("2*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OPTIONS = options([ROOT / "conf"])
SOURCE = ROOT / "src" / "cocoseg"
ROOMS = "|".join(sorted({path.parent.name for path in SOURCE.glob("*/__init__.py")}))


def read(name: str) -> str:
    return (ROOT / name).read_text()


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
    paths = re.findall(rf"`(?:src/cocoseg/)?((?:{ROOMS})/\w+\.py)`", page.read_text())
    assert not [path for path in paths if not (SOURCE / path).is_file()]


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> list[str]:
    """The names of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    for link in re.findall(r"\]\(([^)\s:]+)\)", without_code(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_licenses_lists_every_dependency():
    extras = PROJECT["project"]["optional-dependencies"].values()
    needed = chain(PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *extras)
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in needed} - {"cocoseg"}
    table = read("docs/licenses.md").partition("\n\nThe packages that these need")[0]
    packages = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    assert set(re.findall(r"`([\w-]+)`", "".join(packages))) == names


def test_all_files_name_the_same_version():
    version = cocoseg.__version__
    assert PROJECT["project"]["version"] == version
    (citation,) = re.findall(r"^version: (.+)\ndate-released: (.+)$", read("CITATION.cff"), re.MULTILINE)
    assert citation[0] == version
    assert re.search(r"^## \[(\d.*)\] - (.+)$", read("CHANGELOG.md"), re.MULTILINE).groups() == citation
    assert set(re.findall(r"cocoseg-([\d.]+)-py3", read("docs/install.md"))) == {version}


def test_every_figure_in_docs_is_shown():
    shown = "".join(page.read_text() for page in PAGES)
    figures = [path for suffix in ("png", "svg") for path in (ROOT / "docs").glob(f"*.{suffix}")]
    assert not [path.name for path in figures if f"{path.name})" not in shown]


def test_architecture_quotes_the_recipe():
    code = (SOURCE / "training" / "recipe.py").read_text()
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    recipe = ast.get_source_segment(code, next(node for node in functions if node.name == "train"))
    assert f"```python\n{recipe}\n```" in (ROOT / "docs" / "architecture.md").read_text()
