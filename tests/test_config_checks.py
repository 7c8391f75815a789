"""Settings against their declarations, and the sentences about what is wrong with a key."""

import math
from pathlib import Path

import pytest
from msgspec import structs

from cocoseg.config import (
    SIDES,
    AugmentConfig,
    BudgetConfig,
    Config,
    ExtraConfig,
    PredictConfig,
    ScheduleConfig,
    Settings,
)
from cocoseg.config_checks import REMOVED, as_dict, convert, declarations, drop_removed
from cocoseg.durations import Duration
from cocoseg.errors import CocosegError

EXTRA = "a list, as in [{images: a, annotations: b.json, weight: 2}] or [{images: a, masks: b}], weight > 0"
HOME = str(Path.home())
PLACES = {"images": "a", "annotations": "b"}
LABELS = "all, supercategories, or groups as in {vehicle: [car, bus], …}, none of them named background"


def nested(key: str, value: object) -> dict:
    """`data.subset.size` -> {"data": {"subset": {"size": value}}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def test_undeclared_keys_beside_a_part_of_the_users_own_are_its_arguments():
    found = convert({"schedule": {"_target_": "my.poly", "power": 2, "warmup": 0.5}}, Config).schedule
    assert found == ScheduleConfig(own={"_target_": "my.poly", "power": 2}, warmup=0.5)
    for target, sentence in (
        (None, "schedule.power: no such"),
        (3, "schedule._target_ is 3; it must be a fun"),
    ):
        with pytest.raises(CocosegError, match=f"^{sentence}"):
            convert({"schedule": {"_target_": target, **({} if target else {"power": 2})}}, Config)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "7", 7),
        ("run_dir", 2026, "2026"),  # YAML reads it as a number
        ("data.batch_size", "auto", "auto"),
        ("data.num_workers", None, None),
        ("data.image_size", 64, [64, 64]),
        ("data.cache_size", "96", [96, 96]),
        ("data.subset.categories", "dog", ["dog"]),
        ("data.subset.categories", "things", "things"),
        ("data.subset.categories", ["stuff"], ["stuff"]),  # a category of that name
        ("export", "onnx", ["onnx"]),
        ("tags", "night", ["night"]),
        ("data.root", "~/coco", str(Path.home() / "coco")),
        ("data.root", "~nobody-of-that-name/x", "~nobody-of-that-name/x"),
        ("budget.checkpoint_every", "90s", Duration(seconds=90)),
        ("data.subset.categories", ["7", 7], ["7", 7]),  # a name and an id
        ("data.labels", {"animal": ["dog", 3]}, {"animal": ["dog", 3]}),
        ("augment.flip", 1, 1.0),
        ("budget.extend", "00:01:00:00", Duration(hours=1)),
        ("sweep.name", "a/b_1.2-x", "a/b_1.2-x"),
        ("data.extra", [{"images": "~", "annotations": "b"}], [ExtraConfig(images=HOME, annotations="b")]),
        ("data.extra", [{"images": "a", "masks": "~"}], [ExtraConfig(images="a", masks=HOME)]),
        (
            "model",
            {"_target_": "x", "any": [1, {"thing": None}]},
            {"_target_": "x", "any": [1, {"thing": None}]},
        ),
    ],
)
def test_good_values(key, value, expected):
    found = convert(nested(key, value), Config)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("key", "value", "value_as_typed", "allowed"),
    [
        ("masks.overlap", "maxx", "'maxx'", "one of ignore, max, smallest"),
        ("masks.overlap", ["max"], "[max]", "one of ignore, max, smallest"),
        ("data.batch_size", 0, "0", "a whole number at least 1, or auto"),
        ("data.extra", [{"masks": "a"}], "[{'masks': 'a'}]", EXTRA),
        ("data.extra", [{"wieght": 1}], "[{'wieght': 1}]", EXTRA),
        ("data.extra", [{**PLACES, "weight": 0}], f"[{ {**PLACES, 'weight': 0} }]", EXTRA),
        ("data.extra", "more.json", "'more.json'", EXTRA),
        ("data.batch_size", None, "null", "a whole number at least 1, or auto"),
        ("data.batch_size", 2.5, "2.5", "a whole number at least 1, or auto"),
        ("prepare.workers", "many", "'many'", "a whole number at least 1, or null"),
        ("seed", -1, "-1", "a whole number at least 0 and below 4294967296"),
        ("data.val_fraction", 1.0, "1.0", "a number above 0 and below 1"),
        ("augment.flip", math.nan, "nan", "a number at least 0 and at most 1"),
        ("augment.scale", [0.01, 1], "[0.01,1]", "[least, most], as in [0.5, 2.0], within 0.05 … 20"),
        ("finetune.encoder_lr", math.inf, "inf", "a number above 0 and at most 1000"),
        ("data.image_size", [0, 224], "[0,224]", SIDES),
        ("data.image_size", [224], "[224]", SIDES),
        ("data.image_size", 0, "0", SIDES),
        ("data.image_size", "large", "'large'", SIDES),
        ("augment.scale", 2, "2", "[least, most], as in [0.5, 2.0], within 0.05 … 20"),
        ("export", "tflite", "'tflite'", "a list of onnx, pth, torch_export"),
        ("data.cache", "maybe", "'maybe'", "true or false"),
        ("resume", "yes", "'yes'", "auto, or null"),
        ("export", ["pth", "x"], "[pth,x]", "a list of onnx, pth, torch_export"),
        (
            "data.subset.categories",
            [True],
            "[true]",
            "a list of names or ids, as in [dog, 18], things, stuff, or null",
        ),
        (
            "data.labels",
            "al",
            "'al'",
            LABELS,
        ),
        ("data.labels", {}, "{}", LABELS),
        ("data.labels", {"background": [1]}, "{'background': [1]}", LABELS),
        ("data.labels", {"animal": []}, "{'animal': []}", LABELS),
        ("sweep.name", "../x", "'../x'", "a folder name of letters, digits and . _ + -, or null"),
        ("callbacks", None, "null", "names that map to a _target_ each"),
        ("data", None, "null", "a group of settings, as in data.root"),
        ("schedule", "cosine", "'cosine'", "a group of settings, as in schedule.name"),
        (
            "budget.checkpoint_every",
            None,
            "null",
            "a duration, as in 10m, 6h, 1h30m, 1d or 01:30:00",
        ),
    ],
    ids=str,
)
def test_a_bad_value_is_one_sentence(key, value, value_as_typed, allowed):
    with pytest.raises(CocosegError) as raised:
        convert(nested(key, value), Config)
    assert str(raised.value) == f"{key} is {value_as_typed}; it must be {allowed}"


def test_durations_are_explained():
    with pytest.raises(CocosegError) as raised:
        convert({"budget": {"extend": 3600}}, Config)
    assert str(raised.value) == (
        "budget.extend is the number 3600 (YAML reads an unquoted 6:00:00 as 21600); "
        "write 10m, 6h, 1h30m, 1d or 01:30:00, as in budget.extend=6h"
    )


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("data.bach_size", "data.bach_size: no such setting; did you mean data.batch_size?"),
        ("data.subset.sise", "data.subset.sise: no such setting; did you mean data.subset.size?"),
        ("batch_size", "batch_size: no such setting; did you mean data.batch_size?"),
        ("quux", "quux: no such setting; --help lists all"),
        ("data.quux", "data.quux: no such setting; --help lists all"),
        (
            "schedule.quux",
            "schedule.quux: no such setting; known: schedule._target_, schedule.cooldown, sch",
        ),
        ("output_dir", "output_dir: no such setting; did you mean run_dir?"),
        ("sweep.factor", "sweep.factor is gone: choose sweep.pruner=halving, which has a factor of 3"),
    ],
)
def test_an_unknown_key_is_one_sentence(key, sentence):
    with pytest.raises(CocosegError) as raised:
        convert(nested(key, 3), Config)
    assert str(raised.value).startswith(sentence)


def test_settings_are_set_by_name_only_where_they_are_declared():
    config = convert({}, Config)
    config.data.batch_size = 3
    with pytest.raises(AttributeError):
        config.data.bach_size = 3
    assert structs.replace(config.masks, crowd="skip").crowd == "skip"


def test_settings_as_text_are_read_again():
    config = Config(budget=BudgetConfig(extend=Duration(days=1, seconds=2)), augment=AugmentConfig(flip=0.5))
    assert as_dict(config)["budget"]["extend"] == "01:00:00:02"
    assert convert(as_dict(config), Config) == config


@pytest.mark.parametrize("kind", [Config, PredictConfig])
def test_every_setting_is_explained(kind: type[Settings]):
    for key, setting in declarations(kind).items():
        assert setting.group or setting.meaning, key
        assert len(setting.meaning) <= 85, key


def test_no_removed_key_is_declared():
    assert not set(REMOVED) & set(declarations(Config))


def test_removed_keys_of_an_older_file_are_dropped():
    old = {"seed": 1, "augment": {"rare_crop": 0.0}, "data": {"sampling": "uniform", "subset": {"size": 3}}}
    assert drop_removed(old) == ["augment.rare_crop", "data.sampling"]
    assert old == {"seed": 1, "augment": {}, "data": {"subset": {"size": 3}}}
    assert drop_removed({"augment": None, "data": 3}) == []
