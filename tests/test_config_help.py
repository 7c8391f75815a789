"""`--help` and docs/settings.md are made from the declarations."""

import re

import pytest

from cocoseg.config import PROGRAMS, Config, EvaluateConfig
from cocoseg.config_checks import declarations
from cocoseg.config_help import PAGE, help_text, options, page
from conftest import ROOT

CONF = ROOT / "conf"


def help_of(program: str, *overrides: str) -> str:
    return help_text(program, "purpose", [CONF], overrides)


def keys(text: str) -> set[str]:
    """The keys that begin the lines of a help text, those of presets left out."""
    return set(re.findall(r"^  ([\w.]+)=", text.partition("\npresets:")[0], re.MULTILINE))


def test_docs_settings_is_up_to_date():
    assert (ROOT / PAGE).read_text() == page(CONF), "run: make docs"


def test_help_lists_every_setting():
    single = {key for key, setting in declarations(Config).items() if setting.group is None}
    assert keys(help_of("train")) == single
    assert keys(help_of("prepare")) == {
        key for key in single if key.startswith(("seed", "run_dir", "data.", "masks.", "prepare."))
    }
    assert keys(help_of("evaluate")) == declarations(EvaluateConfig).keys() - declarations(Config).keys()
    assert keys(help_of("predict")) == declarations(PROGRAMS["predict"]).keys()


def test_help_lists_every_preset():
    presets = help_of("train").partition("\npresets:\n")[2].splitlines()
    for group, names in options([CONF]).items():
        if not group.startswith("hydra") and len(names) > 1:
            assert f"  {group}={', '.join(names)}" in presets


def test_help_shows_values_as_composed_and_as_typed():
    text = help_of("train", "experiment=demo", "data.num_workers=null", "masks.overlap=smallest")
    assert re.search(r"^  data\.image_size=\[64,64\] +height and width that", text, re.MULTILINE)
    assert re.search(r"^  data\.num_workers=null ", text, re.MULTILINE)
    assert re.search(r"^  data\.cache=true ", text, re.MULTILINE)
    assert re.search(r"^  data\.images=<data\.root>/images ", text, re.MULTILINE)
    assert re.search(r"^  masks\.overlap=smallest .*\(ignore, max, smallest\)$", text, re.MULTILINE)
    assert re.search(r"^ +model\.\*: base_channels=8 depth=3 ", text, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_two_screens(program: str):
    text = help_of(program)
    assert len(text.splitlines()) < 110
    assert max(map(len, text.splitlines())) <= 130
    values = {word.partition("=")[2] for word in text.split()}
    assert values.isdisjoint({"None", "True", "False"})  # YAML's words are null, true and false
