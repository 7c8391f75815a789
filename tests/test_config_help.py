"""`--help` and docs/settings.md are made from the declarations."""

import re
from functools import cache

import pytest
from omegaconf import OmegaConf

from cocoseg.config import PROGRAMS, Config, EvaluateConfig
from cocoseg.config_checks import declarations
from cocoseg.config_help import ALL, PAGE, help_text, options, page
from conftest import ROOT

CONF = ROOT / "conf"
PARTS = ("model.", "loss.", "optimizer.", "trainer.", "logger.")


@cache
def help_of(program: str, *overrides: str, rare: bool = True) -> str:
    return help_text(program, "purpose", [CONF], overrides, rare=rare)


def keys(text: str) -> set[str]:
    """The keys that begin the lines of a help text, those of presets left out."""
    return set(re.findall(r"^  ([\w.]+)=", text.partition("\npresets:")[0], re.MULTILINE))


def test_docs_settings_is_up_to_date():
    assert (ROOT / PAGE).read_text() == page(CONF), "run: make docs"


def test_help_lists_every_setting_and_argument():
    single = {key for key, setting in declarations(Config).items() if setting.group is None}
    arguments = OmegaConf.load(CONF / "model" / "unet.yaml").keys() - {"_target_"}
    found = keys(help_of("train"))
    assert {key for key in found if not key.startswith(PARTS)} == single
    assert {key for key in found if key.startswith("model.")} == {f"model.{name}" for name in arguments}
    assert keys(help_of("prepare")) == {
        key for key in single if key.startswith(("seed", "run_dir", "data.", "masks.", "prepare."))
    }
    assert keys(help_of("evaluate")) == declarations(EvaluateConfig).keys() - declarations(Config).keys()
    assert keys(help_of("predict")) == declarations(PROGRAMS["predict"]).keys()


def test_help_lists_every_preset():
    presets = re.sub(r"\n {4,}", " ", help_of("train").partition("\npresets:\n")[2]).splitlines()
    for group, names in options([CONF]).items():
        if not group.startswith("hydra") and len(names) > 1:
            assert f"  {group}={', '.join(names)}" in presets


def test_help_shows_values_as_composed_and_as_typed():
    text = help_of("train", "experiment=demo", "data.num_workers=null", "masks.overlap=smallest")
    assert re.search(r"^  data\.image_size=\[64,64\] +height and width that", text, re.MULTILINE)
    assert re.search(r"^  data\.num_workers=null ", text, re.MULTILINE)
    assert re.search(r"^  data\.cache=true ", text, re.MULTILINE)
    assert re.search(r"^  data\.images=<data\.root>/images ", text, re.MULTILINE)
    assert re.search(r"^  masks\.overlap=smallest [^=]+\(ignore,\s+max,\s+smallest\)$", text, re.MULTILINE)
    assert re.search(r"^  model\.depth=3 +number of times that the image is halved$", text, re.MULTILINE)


def test_help_begins_with_what_is_usual():
    usual, everything = help_of("train", rare=False), help_of("train")
    assert keys(usual) < keys(everything)
    assert {"data.root", "trainer.max_time", "model.depth"} < keys(usual)
    hidden = len(keys(everything)) - len(keys(usual))
    assert f"python train.py {ALL} lists {hidden} more settings." in usual.splitlines()
    assert ALL not in everything + help_of("predict", rare=False)
    assert len(usual.splitlines()) <= 75


def test_an_argument_has_the_comment_of_the_chosen_preset():
    text = help_of("train", "trainer=ddp", "model=unet_lite0")
    assert re.search(r"^  trainer\.devices=auto +all GPUs; on CPUs a number$", text, re.MULTILINE)
    assert re.search(r"^  model\.encoder=tf_efficientnet_lite0 +any name of timm", text, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("rare", [False, True])
def test_help_fits_a_terminal(program: str, rare: bool):
    text = help_of(program, rare=rare)
    assert max(map(len, text.splitlines())) <= 100
    values = {word.partition("=")[2] for word in text.split()}
    assert values.isdisjoint({"None", "True", "False"})  # YAML's words are null, true and false
