"""conf/ against the declarations of config.py: the same keys, the same defaults, and everything composes."""

import re
from functools import cache
from itertools import groupby, zip_longest

import pytest
from hydra import compose, initialize_config_dir
from msgspec import structs
from omegaconf import DictConfig, OmegaConf

import cocoseg.cli  # noqa: F401  registers resolvers
from cocoseg.config import PROGRAMS, DataConfig, EvaluateConfig, Settings, ShapesConfig
from cocoseg.config_checks import convert, declarations
from cocoseg.errors import CocosegError
from conftest import ROOT

CONF = ROOT / "conf"
GROUPS = groupby(sorted(CONF.glob("*/*.yaml")), key=lambda path: path.parent.name)
OPTIONS = [[f"{name}={path.stem}" for path in paths] for name, paths in GROUPS if name != "experiment"]
# One option of each group at a time, which is quicker than one at a time.
ROWS = [[option for option in row if option] for row in zip_longest(*OPTIONS)]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
CHOSEN = (
    "model",
    "loss",
    "optimizer",
    "trainer",
    "logger",
    "data",
    "run_dir",
    "output",
)  # only conf/ says them


@cache
def composed(program: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, list(overrides))


def settings(program: str, *overrides: str) -> Settings:
    return checked(composed(program, *overrides), program)


def checked(config: DictConfig, program: str = "train") -> Settings:
    return convert(OmegaConf.to_container(config, resolve=True), PROGRAMS[program])


@pytest.mark.parametrize(("data", "keeps"), [("coco", False), ("custom", True), ("train_val", True)])
def test_presets_that_use_all_images_keep_those_without_annotations(data: str, keeps: bool) -> None:
    assert composed("train", f"data={data}").data.subset.keep_empty is keeps


# Keys and defaults


def leaves(node: dict, prefix: str = "") -> set[str]:
    """The keys of a configuration, those of untyped nodes left out."""
    found = set()
    for name, value in node.items():
        key = f"{prefix}{name}"
        is_group = key in declarations(EvaluateConfig) and declarations(EvaluateConfig)[key].group
        found |= leaves(value, f"{key}.") if is_group and isinstance(value, dict) else {key}
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_conf_and_declarations_have_the_same_keys(program):
    declared = {key for key, setting in declarations(PROGRAMS[program]).items() if setting.group is None}
    shapes = () if program == "predict" else ("data=shapes",)
    assert leaves(OmegaConf.to_container(composed(program, *shapes))) == declared


def test_conf_and_declarations_have_the_same_defaults():
    for program, kind in PROGRAMS.items():
        found, default = settings(program), kind()
        for name in declarations(kind):
            if "." not in name and name not in CHOSEN:
                assert getattr(found, name) == getattr(default, name), (program, name)
    places = {"root": None, "images": None, "annotations": None}
    assert structs.replace(settings("train").data, **places) == DataConfig()
    assert settings("train", "data=shapes").data.shapes == ShapesConfig()


# Composition


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_every_option_of_every_group_composes(row):
    config = settings("train", *row)

    assert (config.data.shapes is not None) == ("data=shapes" in row)
    assert (not config.logger) == ("logger=none" in row)
    with_weights = ("model=unet_timm", "model=unet_resnet", "model=unet_lite")
    assert bool(config.model.get("weights")) == any(option.startswith(with_weights) for option in row)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_goes_before_the_defaults(experiment):
    config = composed("train", f"experiment={experiment}")

    checked(config)
    stated = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    del stated["defaults"]
    assert OmegaConf.merge(config, stated) == config


def test_an_override_goes_before_an_experiment():
    config = settings("train", "data.image_size=[9,9]", "optimizer.lr=0.5", "experiment=demo")

    assert config.data.image_size == [9, 9]
    assert config.optimizer["lr"] == 0.5
    assert config.data.shapes is not None


@pytest.mark.parametrize(("data", "size"), [("coco", 8000), ("custom", None), ("train_val", None)])
def test_the_number_of_images_is_chosen_with_the_data(data, size):
    assert composed("train", f"data={data}").data.subset.size == size
    stated = [OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml") for experiment in EXPERIMENTS]
    assert [preset for preset in stated if "size" in preset.get("data", {}).get("subset", {})] == []


def test_the_mission_to_the_letter():
    config = settings("train", "experiment=coco_scratch")

    assert config.model["_target_"] == "cocoseg.UNet"
    assert config.optimizer["_target_"] == "torch.optim.Adam"
    assert config.loss["_target_"] == "cocoseg.CrossEntropyLoss"
    assert (config.masks.overlap, config.masks.encoding) == ("max", "x100")
    assert (config.data.image_size, config.data.subset.size) == ([224, 224], 8000)
    assert config.trainer["max_time"] == "6h"


@pytest.mark.parametrize("key", ["bach_size", "data.bach_size", "sweep.prune"])
def test_an_unknown_key_in_a_preset_of_a_user_is_refused_by_name(tmp_path, key):
    (tmp_path / "experiment").mkdir()
    preset = OmegaConf.from_dotlist([f"{key}=3"])
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{OmegaConf.to_yaml(preset)}")

    with pytest.raises(CocosegError, match=rf"^{re.escape(key)}(: no such setting; did you mean| is gone: )"):
        settings("train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
