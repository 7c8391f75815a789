import dataclasses
import math
import re
from datetime import timedelta

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

import cocoseg.cli  # noqa: F401  registers the schema
from cocoseg.checks import check
from cocoseg.config import (
    AugmentConfig,
    Config,
    DataConfig,
    MasksConfig,
    PredictConfig,
    PrepareConfig,
    ShapesConfig,
    SubsetConfig,
    SweepConfig,
)
from cocoseg.config_evaluate import EvaluateConfig
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError
from conftest import ROOT

CONF = ROOT / "conf"
PROGRAMS = ("train", "prepare", "evaluate")
OPTIONS = sorted(f"{p.parent.name}={p.stem}" for p in CONF.glob("*/*.yaml") if p.parent.name != "experiment")
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(program: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, list(overrides))


def typed(program: str, *overrides: str) -> Config:
    return OmegaConf.to_object(composed(program, *overrides))


# Durations


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("00:06:00:00", timedelta(hours=6)),
        ("01:02:03:04", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("0:0:0:1", timedelta(seconds=1)),
        (" 00:23:59:59 ", timedelta(hours=23, minutes=59, seconds=59)),
        ("100:00:00:00", timedelta(days=100)),
        ({"hours": 6}, timedelta(hours=6)),
        ({"hours": 1, "minutes": 30}, timedelta(minutes=90)),
        ({"seconds": 1.5}, timedelta(seconds=1.5)),
    ],
)
def test_durations(value, expected):
    assert parse_duration(value, key="trainer.max_time") == expected


@pytest.mark.parametrize(
    "value",
    [
        21600,
        21600.0,
        True,
        "6 hours",
        "6:00:00",
        "21600",
        "",
        "00:24:00:00",
        "00:00:60:00",
        "00:00:00:60",
        "-1:00:00:00",
        "00:06:00:00:00",
        "00:00:00:00",
        "99999999999:00:00:00",
        {},
        {"hours": 0},
        {"hours": -1},
        {"hour": 6},
        {"hours": "6"},
        {"hours": None},
        {"hours": math.inf},
        {"hours": math.nan},
        {"days": 10**12},
        {1: 2},
        ["00:06:00:00"],
    ],
    ids=repr,
)
def test_what_is_no_duration_is_refused_with_an_example(value):
    with pytest.raises(CocosegError, match=r'^trainer\.max_time is .*trainer\.max_time="00:06:00:00"'):
        parse_duration(value, key="trainer.max_time")


def test_a_number_is_explained():
    with pytest.raises(CocosegError, match=r"is the number 21600 .*unquoted 6:00:00"):
        parse_duration(21600, key="trainer.max_time")


# Checks


@pytest.fixture
def config(tmp_path) -> Config:
    """Settings that pass the check."""
    annotations = tmp_path / "instances.json"
    annotations.touch()
    data = DataConfig(root=str(tmp_path), images=str(tmp_path), annotations=str(annotations))
    return Config(data=data, trainer={"max_time": "00:06:00:00"}, callbacks={})


def changed(config: Config, key: str, value: object) -> Config:
    """The settings with one key set, as in `data.subset.size`."""
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = getattr(node, parent)
    if isinstance(node, dict):
        node[name] = value
    else:
        assert hasattr(node, name)
        setattr(node, name, value)
    return config


def test_good_settings_pass(config):
    check(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 4294967295),
        ("data.batch_size", 1),
        ("data.batch_size", "auto"),
        ("data.cache_size", [300, 224]),
        ("data.cache_size", None),
        ("augment.scale", [0.05, 20]),
        ("augment.flip", 1),
        ("augment.hue", 0.5),
        *(("compile", value) for value in (True, False)),
        *(("finetune.frozen", value) for value in (0.0, 0.5, 1.0)),
        *(("finetune.encoder_lr", value) for value in (0.1, 1.0, 2.0)),
        *(("schedule.name", value) for value in ("linear", "cosine", "trapezoid", "constant")),
        ("schedule.cooldown", 0.98),
        *(("sweep.method", value) for value in ("tpe", "random", "grid")),
        *(("sweep.pruner", value) for value in ("none", "median", "halving", "hyperband")),
        ("sweep.name", "a/b_1.2-x"),
        ("data.num_workers", 0),
        ("data.num_workers", None),
        ("data.image_size", [1, 1]),
        ("data.subset.size", 1),
        ("data.subset.size", None),
        ("data.subset.categories", ["dog", 18]),
        ("data.root", None),
        ("data.val_images", None),
        ("prepare.workers", 1),
        ("trainer.max_time", None),
        *(("masks.overlap", value) for value in ("max", "smallest", "ignore")),
        *(("masks.rasterizer", value) for value in ("pillow", "coco")),
        *(("masks.crowd", value) for value in ("ignore", "draw", "skip")),
        *(("masks.encoding", value) for value in ("palette", "uint16", "x100")),
    ],
)
def test_good_values(config, key, value):
    check(changed(config, key, value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bayes"}, "sweep.method is 'bayes'; choose with sweep=tpe, random, grid"),
        ({"method": "tpe", "trials": 0}, "sweep.trials is 0; it must be at least 1"),
        ({"method": "tpe", "pruner": "best"}, "sweep.pruner is 'best'; it must be one of none, median,"),
        ({"method": "tpe", "total_time": 3600}, "sweep.total_time is the number 3600"),
        ({"method": "tpe", "name": "../x"}, "sweep.name is '../x'; it becomes a folder"),
        ({"space": {"seed": "1,2"}}, "how to search is not chosen"),
        ({"total_time": "00:01:00:00"}, "how to search is not chosen"),
    ],
)
def test_bad_sweeps(config, settings, message):
    for key, value in settings.items():
        changed(config, f"sweep.{key}", value)
    with pytest.raises(CocosegError) as raised:
        check(config)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("ckpt_path", "no/such.ckpt"),
        ("data.root", "no/such/folder"),
        ("data.images", None),
        ("data.images", "no/such/folder"),
        ("data.annotations", None),
        ("data.annotations", "no/such.json"),
        ("data.val_images", "no/such/folder"),
        ("data.val_annotations", "no/such.json"),
        ("data.image_size", [224]),
        ("data.image_size", [224, 224, 3]),
        ("data.image_size", []),
        ("data.image_size", [0, 224]),
        ("data.image_size", [224, -1]),
        ("data.batch_size", 0),
        ("data.batch_size", "many"),
        ("data.cache_size", [223, 300]),
        ("data.cache_size", [300]),
        *(("augment.scale", value) for value in ([2.0, 0.5], [0.01, 1], [1, 21], [1.0], [math.nan, 1])),
        *(("augment.flip", value) for value in (-0.1, 1.1, math.nan)),
        ("augment.rotate", 181),
        ("augment.hue", 0.6),
        ("augment.contrast", -1),
        ("augment.class_mix", 2),
        *(("augment.start_size", value) for value in (0.0, 1.1, math.nan)),
        *(("compile", value) for value in ("auto", "yes", 1, None)),
        *(("finetune.frozen", value) for value in (-0.1, 1.1, math.nan)),
        *(("finetune.encoder_lr", value) for value in (0.0, -1, math.inf, math.nan)),
        *(("schedule.cooldown", value) for value in (0.0, 0.99, math.nan)),
        ("data.num_workers", -1),
        ("data.val_fraction", 0.0),
        ("data.val_fraction", 1.0),
        ("data.val_fraction", -0.1),
        ("data.val_fraction", math.nan),
        ("data.subset.size", 0),
        ("data.subset.size", -5),
        ("data.subset.categories", [True]),
        ("data.subset.categories", [1.5]),
        ("data.subset.categories", ["dog", None]),
        ("masks.overlap", "min"),
        ("masks.rasterizer", "Pillow"),
        ("masks.crowd", "yes"),
        ("masks.encoding", "png"),
        ("prepare.workers", 0),
        ("trainer.max_time", 21600),
    ],
)
def test_bad_values_are_refused_by_name(config, key, value):
    with pytest.raises(CocosegError, match=rf"^{re.escape(key)}\b"):
        check(changed(config, key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.shapes.images", 1),
        ("data.shapes.seed", -1),
        ("data.root", None),
        ("data.val_annotations", "no/such.json"),
        ("data.val_images", "no/such/folder"),
    ],
)
def test_bad_values_beside_drawn_shapes_are_refused_by_name(config, key, value):
    config.data.shapes = ShapesConfig()

    with pytest.raises(CocosegError, match=rf"^{re.escape(key)}\b"):
        check(changed(config, key, value))


def test_validation_images_need_their_annotations(config):
    with pytest.raises(CocosegError, match=r"^data\.val_images is set without"):
        check(changed(config, "data.val_images", "."))


def test_drawn_shapes_need_not_be_there_yet(config):
    config.data.shapes = ShapesConfig()
    config.data.root = config.data.images = config.data.annotations = "not/yet"

    check(config)


def test_a_trainer_without_max_time_has_no_limit(config):
    del config.trainer["max_time"]

    check(config)


def test_callbacks_that_are_no_mapping_are_refused(config):
    with pytest.raises(CocosegError, match=r"^callbacks\b"):
        check(changed(config, "callbacks", None))


def test_freezing_for_a_part_of_the_run_needs_an_end(config):
    config.trainer = {"max_time": None}
    check(changed(config, "finetune.frozen", 1.0))

    with pytest.raises(CocosegError, match=r"^finetune\.frozen is a share of the run; set trainer"):
        check(changed(config, "finetune.frozen", 0.5))


def test_a_factor_of_a_learning_rate_needs_one(config):
    config.optimizer = {"_target_": "my.Optimizer"}

    with pytest.raises(CocosegError, match=r"^finetune\.encoder_lr is a factor of optimizer\.lr, which"):
        check(changed(config, "finetune.encoder_lr", 0.1))


UNET = {"_target_": "cocoseg.unet.UNet"}
RESNET = {"_target_": "cocoseg.resnet_unet.ResNetUNet", "encoder": "resnet50"}


@pytest.mark.parametrize(
    "model",
    [
        {**RESNET, "weights": "IMAGENET1K_V1"},
        {**RESNET, "weights": "IMAGENET1K_V2", "weights_part": "encoder"},
        {**UNET, "weights": __file__, "weights_part": "body"},
        {**UNET, "weights": None},
        {"_target_": "my.Net", "weights": "whatever"},
    ],
)
def test_good_weights(config, model):
    check(changed(config, "model", model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({**UNET, "weights": "no/such.pth"}, r"^model\.weights: no file no/such\.pth"),
        ({**RESNET, "weights": "IMAGENET1K_V3"}, r"^model\.weights: no file IMAGENET1K_V3; .*IMAGENET1K_V2"),
        ({**UNET, "weights": "IMAGENET1K_V1"}, r"^model\.weights=IMAGENET1K_V1 is for a ResNet"),
        (
            {**RESNET, "encoder": "resnet34", "weights": "IMAGENET1K_V2"},
            r"^model\.weights=IMAGENET1K_V2: for resnet34 there is only IMAGENET1K_V1",
        ),
        ({**UNET, "weights": 3}, r"^model\.weights is 3;"),
        ({**UNET, "weights": None, "weights_part": "head"}, r"^model\.weights_part is 'head'; .*body"),
    ],
)
def test_bad_weights_are_refused_by_name(config, model, message):
    with pytest.raises(CocosegError, match=message):
        check(changed(config, "model", model))


def test_who_goes_on_needs_no_weights_any_more(config):
    config.model = {**UNET, "weights": "gone.pth"}
    check(changed(config, "resume", "auto"))


# What stands in conf/


def test_only_presets_on_a_resnet_begin_with_weights():
    models = [option for option in OPTIONS if option.startswith("model=")]
    weights = {option: typed("train", option).model.get("weights") for option in models}

    assert {option: name for option, name in weights.items() if name} == {
        "model=unet_resnet34": "IMAGENET1K_V1",
        "model=unet_resnet50": "IMAGENET1K_V2",
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_default_composes(program):
    config = typed(program)

    assert isinstance(config, Config)
    assert parse_duration(config.trainer["max_time"], key="") == timedelta(hours=6)
    assert config.data.subset.size == 8000
    assert config.run_dir.startswith(f"outputs/{program}/")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes(option, program):
    config = typed(program, option)

    assert isinstance(config, Config)
    assert type(config.data.subset) is SubsetConfig
    assert (config.data.shapes is not None) == (option == "data=shapes")
    assert (config.logger is None or config.logger == {}) == (option == "logger=none")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_goes_before_the_defaults(experiment, program):
    config = composed(program, f"experiment={experiment}")

    assert isinstance(OmegaConf.to_object(config), Config)
    stated = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    del stated["defaults"]
    assert OmegaConf.merge(config, stated) == config


def test_an_override_goes_before_an_experiment():
    config = typed("train", "data.image_size=[9,9]", "optimizer.lr=0.5", "experiment=demo")

    assert config.data.image_size == [9, 9]
    assert config.optimizer["lr"] == 0.5
    assert config.data.shapes is not None


def test_there_are_options_and_experiments():
    assert {"data=coco", "data=shapes", "data=custom", "model=unet", "logger=none"} <= set(OPTIONS)
    assert {"coco_scratch", "demo"} <= set(EXPERIMENTS)


def test_the_mission_to_the_letter():
    config = typed("train", "experiment=coco_scratch")

    assert config.model["_target_"] == "cocoseg.unet.UNet"
    assert config.optimizer["_target_"] == "torch.optim.Adam"
    assert config.loss["_target_"] == "cocoseg.losses.CrossEntropyLoss"
    assert (config.masks.overlap, config.masks.encoding) == ("max", "x100")
    assert (config.data.image_size, config.data.subset.size) == ([224, 224], 8000)
    assert config.trainer["max_time"] == "00:06:00:00"


@pytest.mark.parametrize(
    "override",
    [
        "bach_size=3",
        "data.bach_size=3",
        "data.subset.bach_size=3",
        "model.bach_size=3",
        "data.batch_size=2.5",
        "data.batch_size=null",
        "data.image_size=[a,b]",
        "data.subset.keep_empty=maybe",
        "masks.overlap=[max]",
    ],
)
def test_an_unknown_key_and_a_wrong_type_are_refused_by_name(override):
    with pytest.raises(ConfigCompositionException, match=re.escape(override.split("=")[0])):
        composed("train", override)


def test_an_unknown_key_in_a_preset_is_refused_by_name(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata: {bach_size: 3}\n")

    with pytest.raises(HydraException, match="bach_size"):
        composed("train", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")


@pytest.mark.parametrize("key", ["bach_size", "data.bach_size", "data.subset.bach_size"])
def test_an_unknown_key_forced_in_with_a_plus_is_refused_by_name(key):
    with pytest.raises(CocosegError, match=rf"^{re.escape(key)}\b"):
        check(typed("train", "data=shapes", f"+{key}=3"))


def fields(schema: type) -> set[str]:
    return {field.name for field in dataclasses.fields(schema)}


def keys(file: str, *path: str) -> set[str]:
    """The keys that a YAML file itself states."""
    node = OmegaConf.load(CONF / file)
    for name in path:
        node = node[name]
    return {str(key) for key in node} - {"defaults", "hydra"}


def test_yaml_and_schemas_have_the_same_keys():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"experiment", "hydra"}

    assert keys("train.yaml") | groups == fields(Config)
    assert keys("data/coco.yaml") | {"shapes"} == fields(DataConfig)
    assert keys("data/coco.yaml", "subset") == fields(SubsetConfig)
    assert keys("data/shapes.yaml", "shapes") == fields(ShapesConfig)
    assert keys("masks/default.yaml") == fields(MasksConfig)
    assert keys("augment/none.yaml") == fields(AugmentConfig)
    assert keys("train.yaml", "prepare") == fields(PrepareConfig)
    assert keys("train.yaml", "sweep") | {"method", "trial"} == fields(SweepConfig)
    assert keys("evaluate.yaml") | fields(Config) == fields(EvaluateConfig)


def test_yaml_and_schemas_have_the_same_defaults():
    config = typed("train")
    places = {"root", "images", "annotations"}

    for name in fields(DataConfig) - places:
        assert getattr(config.data, name) == getattr(DataConfig(), name), name
    assert typed("train", "data=shapes").data.shapes == ShapesConfig()
    assert (config.masks, config.prepare) == (MasksConfig(), PrepareConfig())
    assert config.sweep == SweepConfig()
    assert (config.augment, config.compile) == (AugmentConfig(), Config().compile)
    assert (config.schedule, config.finetune) == (Config().schedule, Config().finetune)
    assert (config.seed, config.ckpt_path, config.callbacks) == (0, None, {})
    assert config.export == Config().export
    evaluation, defaults = typed("evaluate"), EvaluateConfig()
    for name in fields(EvaluateConfig) - fields(Config):
        assert getattr(evaluation, name) == getattr(defaults, name), name


def settings(schema: type = Config, prefix: str = "") -> list[str]:
    """Every key that a user may set, as typed: `data.subset.size`."""
    names = []
    nested = {"data": DataConfig, "masks": MasksConfig, "prepare": PrepareConfig}
    nested |= {"subset": SubsetConfig, "shapes": ShapesConfig}
    for name in fields(schema):
        names += settings(nested[name], f"{prefix}{name}.") if name in nested else [prefix + name]
    return sorted(names)


def help_text(program: str) -> str:
    return OmegaConf.load(CONF / f"{program}.yaml").hydra.help._get_node("template")._value()


@pytest.mark.parametrize("key", settings())
def test_help_of_train_tells_every_setting(key):
    assert re.search(rf"(?<![\w.]){re.escape(key)}\b", help_text("train"))


@pytest.mark.parametrize("key", [k for k in settings() if re.match(r"data\.subset|masks|prepare", k)])
def test_help_of_prepare_tells_what_shapes_masks(key):
    assert re.search(rf"(?<![\w.]){re.escape(key)}\b", help_text("prepare"))


@pytest.mark.parametrize("key", sorted(set(EvaluateConfig.__annotations__)))
def test_help_of_evaluate_tells_what_is_its_own(key):
    assert re.search(rf"(?<![\w.]){re.escape(key)}\b", help_text("evaluate"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_only_keys_that_exist_and_fits_a_screen(program):
    text = help_text(program)
    config = composed(program, "data=shapes")

    for key in re.findall(r"\b((?:data|masks|prepare|augment|model|optimizer|trainer)(?:\.[a-z_]+)+)=", text):
        assert OmegaConf.select(config, key, default="missing") != "missing", key
    assert text.count("\n") < 45


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("model=")])
def test_help_of_train_knows_every_model(option):
    assert re.search(rf"\b{option.removeprefix('model=')}\b", help_text("train"))
    config = OmegaConf.create({"help": help_text("train"), **composed("train", option)})
    assert "model.depth=" in config.help  # its values are found in the configuration, or left out


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_lists_every_option_and_experiment(program):
    text = help_text(program)

    for option in (o for o in OPTIONS if o.startswith("data=")):
        assert re.search(rf"\b{option.removeprefix('data=')}\b", text), option
    for experiment in EXPERIMENTS if program == "train" else ():
        assert re.search(rf"\b{experiment}\b", text), experiment


# predict.py


def test_predict_has_the_schemas_keys_and_defaults():
    assert keys("predict.yaml") == fields(PredictConfig)
    config: PredictConfig = OmegaConf.to_object(composed("predict", "output=outputs"))
    assert config == PredictConfig()


@pytest.mark.parametrize("key", sorted(fields(PredictConfig)))
def test_help_of_predict_tells_every_setting(key):
    assert re.search(rf"(?<![\w.]){key}\b", help_text("predict"))
    assert help_text("predict").count("\n") < 45


@pytest.mark.parametrize("override", ["checkpoints=a", "batch_size=many", "overlay=perhaps", "+network.a=b"])
def test_what_predict_does_not_know_is_refused(override):
    with pytest.raises(HydraException):
        composed("predict", override)
