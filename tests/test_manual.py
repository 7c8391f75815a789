"""`--help` and docs/settings.md are made from the declarations."""

import re

import pytest
from hydra import compose, initialize_config_dir

from cocoseg.cli import PROGRAMS
from cocoseg.config import Config, EvaluateConfig
from cocoseg.manual import PAGE, help_of_settings, page
from cocoseg.settings import declarations
from conftest import ROOT


def help_of(program: str, *overrides: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return help_of_settings(PROGRAMS[program], program, compose(program, list(overrides)))


def keys(text: str) -> set[str]:
    """The keys that begin the lines of a help text."""
    return {
        found.removesuffix(".*") for found in re.findall(r"^  ([\w.]+(?:\.\*)?)(?==| )", text, re.MULTILINE)
    }


def test_docs_settings_is_up_to_date():
    assert (ROOT / PAGE).read_text() == page(), "run: make docs"


def test_help_lists_every_setting():
    single = {key for key, setting in declarations(Config).items() if setting.group is None}
    assert keys(help_of("train")) == single
    assert keys(help_of("prepare")) > {
        key for key in single if key.startswith(("data.", "masks.", "prepare."))
    }
    assert keys(help_of("evaluate")) == declarations(EvaluateConfig).keys() - declarations(Config).keys()
    assert keys(help_of("predict")) == declarations(PROGRAMS["predict"]).keys()


def test_help_shows_values_as_composed_and_as_typed():
    text = help_of("train", "experiment=demo", "data.num_workers=null", "masks.overlap=smallest")
    assert re.search(r"^  data\.image_size=\[64,64\] +height, width that", text, re.MULTILINE)
    assert re.search(r"^  data\.num_workers=null ", text, re.MULTILINE)
    assert re.search(r"^  data\.cache=true ", text, re.MULTILINE)
    assert re.search(r"^  masks\.overlap=smallest .*\(max, smallest, ignore\)$", text, re.MULTILINE)
    assert re.search(r"^  model\.\* .* base_channels=8 depth=3 ", text, re.MULTILINE)
    assert "None" not in text
    assert max(map(len, text.splitlines())) <= 130


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_two_screens(program: str):
    assert len(help_of(program).splitlines()) < 90
