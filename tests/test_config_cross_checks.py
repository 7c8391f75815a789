"""Checks across settings, and of the files and packages that settings name."""

import pytest

from cocoseg.config import Config, DataConfig, ExtraConfig, PredictConfig, ShapesConfig, SweepConfig
from cocoseg.config_cross_checks import check, check_export, check_predict, check_prediction
from cocoseg.durations import Duration
from cocoseg.errors import CocosegError


@pytest.fixture
def config(tmp_path) -> Config:
    """Settings that pass the check."""
    annotations = tmp_path / "instances.json"
    annotations.touch()
    data = DataConfig(root=str(tmp_path), images=str(tmp_path), annotations=str(annotations))
    return Config(data=data, trainer={"max_time": "00:06:00:00"})


def extra(images: str, annotations: str | None) -> ExtraConfig:
    return ExtraConfig(images=images, annotations=annotations)


def changed(config: Config, key: str, value: object) -> Config:
    """The settings with one key set, as in `data.subset.size`."""
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = getattr(node, parent)
    if isinstance(node, dict):
        node[name] = value
    else:
        setattr(node, name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.cache_size", [300, 224]),
        ("data.root", None),
        ("schedule.cooldown", 0.98),
        ("trainer.max_time", None),
        ("trainer.max_time", "slurm"),  # also outside of a job, for prepare.py
        ("budget.until", "18:00"),
        ("budget.until", "slurm"),
        ("finetune.frozen", 1.0),
        ("resume", "auto"),
    ],
)
def test_good_values(config, key, value):
    check(changed(config, key, value))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("ckpt_path", "no/such.ckpt", "ckpt_path: no file no/such.ckpt"),
        ("data.root", "no/such", "data.root: no folder no/such; it should hold the images ("),
        ("data.images", None, "data.images is not set: the folder of the images"),
        ("data.images", "no/such", "data.images: no folder no/such; set data.images, or data.root to "),
        ("budget.until", "18", "budget.until is '18'; write a time of day or a date and a time, as in "),
        ("data.annotations", None, "data.annotations is not set: the COCO instances file (JSON)"),
        ("data.extra", [extra("no/such", "a.json")], "data.extra: no folder no/such; set data.extra to"),
        ("data.extra", [extra(".", "no.json")], "data.extra: no file no.json"),
        ("data.extra", [extra(".", None)], "data.extra: images need annotations or masks, and not both"),
        ("data.extra", [ExtraConfig(images=".", masks="no/such")], "data.extra: no folder no/such; set "),
        ("data", DataConfig(own={}, extra=[extra(".", __file__)]), "data.extra adds to data.images; leave "),
        ("data.annotations", "no/such.json", "data.annotations: no file no/such.json; set data.annotations"),
        ("data.val_images", ".", "data.val_images is set without data.val_annotations"),
        ("data.val_annotations", "no/such.json", "data.val_annotations: no file no/such.json"),
        ("data.cache_size", [223, 300], "data.cache_size is [223, 300]; it must be no smaller than "),
        ("augment.scale", [2.0, 0.5], "augment.scale is [2.0, 0.5]; it must be [least, most]"),
        ("schedule.cooldown", 0.99, "schedule.cooldown is 0.99; it must be at most 1 - schedule.warmup"),
        ("trainer.max_time", 21600, "trainer.max_time is the number 21600 (YAML reads"),
        ("trainer.min_steps", 5, "trainer.min_steps would break trainer.max_time; set one of them to null"),
        ("trainer.strategy", "fsdp", "trainer.strategy is 'fsdp'; it must be one of auto, ddp, "),
        ("trainer.logger", {"_target_": "x"}, "trainer.logger is set elsewhere: choose loggers by logger=…"),
        ("sweep", SweepConfig(trials=3), "sweep: no method is chosen; add sweep=tpe, sweep=random or "),
        ("sweep", SweepConfig(total_time=Duration(hours=1)), "sweep: no method is chosen"),
        ("loss", {"class_weights": "enett"}, "loss.class_weights is 'enett'; it must be one of none, enet"),
    ],
    ids=str,
)
def test_bad_values_are_refused_by_name(config, key, value, sentence):
    with pytest.raises(CocosegError) as raised:
        check(changed(config, key, value))
    assert str(raised.value).startswith(sentence)


def test_settings_that_exclude_each_other(config):
    changed(config, "resume", "auto")
    with pytest.raises(CocosegError, match=r"^resume=auto finds its checkpoint itself; leave out ckpt_path"):
        check(changed(config, "ckpt_path", "x"))
    config.resume = config.ckpt_path = None
    check(changed(config, "data.batch_size", "auto"))
    for devices in (2, [0, 1], "auto"):
        with pytest.raises(CocosegError, match=r"^data\.batch_size=auto is for one device; give a number"):
            check(changed(config, "trainer.devices", devices))


@pytest.mark.parametrize("missing", ["data.annotations", "ckpt_path"])
def test_a_mistake_in_a_setting_is_named_before_what_is_missing_on_disk(config, missing):
    changed(config, missing, "no/such.json")
    with pytest.raises(CocosegError, match=rf"^{missing}: no file no/such\.json"):
        check(config)
    with pytest.raises(CocosegError, match=r"^trainer\.max_time"):
        check(changed(config, "trainer.max_time", "6 hours"))


@pytest.mark.parametrize(("key", "value"), [("finetune.frozen", 0.5), ("augment.start_size", 0.5)])
def test_a_share_of_the_run_needs_an_end(config, key, value):
    check(changed(config, key, value))
    config.trainer = {"max_time": None}
    with pytest.raises(CocosegError, match=rf"^{key} .*; set trainer\.max_time, max_epochs or max_steps$"):
        check(config)
    for config.trainer in ({"max_steps": 10}, {"max_time": "slurm"}):
        check(config)
    config.trainer = {}
    check(changed(config, "budget.until", "18:00"))


def test_a_factor_of_a_learning_rate_needs_one(config):
    config.optimizer = {"_target_": "my.Optimizer"}
    with pytest.raises(CocosegError, match=r"^finetune\.encoder_lr is a factor of optimizer\.lr, which"):
        check(changed(config, "finetune.encoder_lr", 0.1))


BELOW = {"images": "{}/train", "annotations": "{}/instances_train.json", "val_images": "{}/val"}


@pytest.mark.parametrize(
    ("root", "sentence"),
    [
        (None, "data.root is not set: the folder that holds instances_train.json, train, val"),
        ("no/such", "data.root: no folder no/such; it should hold the images (no/such/train) and the COCO "),
        (".", "data.val_images: no folder ./val; set data.val_images, or data.root to what holds it"),
    ],
)
def test_a_wrong_root_of_the_users_own_data_does_not_advise_to_download_others(config, root, sentence):
    places = {key: place.format(root) for key, place in BELOW.items()}
    config.data = DataConfig(root=root, **places, val_annotations=__file__, annotations_url=None)
    with pytest.raises(CocosegError) as raised:
        check(config)
    assert str(raised.value).startswith(sentence)
    assert "fetch" not in str(raised.value)


def test_a_wrong_root_of_the_usual_data_names_both_ways(config):
    with pytest.raises(CocosegError, match=r"data\.download=true fetches .*; your own data: data=custom "):
        check(changed(config, "data.root", "no/such"))
    with pytest.raises(CocosegError, match=r"data/coco; .*; python prepare\.py fetches what is missing$"):
        check(Config(data=DataConfig(root="data/coco", images="data/coco/x", annotations="data/coco/y")))


def test_drawn_shapes_need_a_root_but_no_files_yet(config):
    config.data = DataConfig(root="not/yet", images="not/yet", annotations="not/yet", shapes=ShapesConfig())
    check(config)
    with pytest.raises(CocosegError, match=r"^data\.root is not set: the folder to draw the shapes in"):
        check(changed(config, "data.root", None))


UNET = {"_target_": "cocoseg.UNet"}
TIMM = {"_target_": "cocoseg.TimmUNet", "encoder": "resnet50"}


@pytest.mark.parametrize(
    "model",
    [
        {**TIMM, "weights": "default"},
        {**TIMM, "weights": "default", "weights_part": "encoder"},
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
        (
            {**TIMM, "weights": "IMAGENET1K_V1"},
            r"^model\.weights: no file IMAGENET1K_V1; it must be one, default \(timm",
        ),
        (
            {**UNET, "weights": "default"},
            r"^model\.weights: no file default; it must be one or null",
        ),
        ({**UNET, "weights": None, "weights_part": "head"}, r"^model\.weights_part is 'head'; .*body"),
    ],
)
def test_bad_weights_are_refused_by_name(config, model, message):
    with pytest.raises(CocosegError, match=message):
        check(changed(config, "model", model))


def test_a_resumed_run_needs_no_weights_any_more(config):
    config.model = {**UNET, "weights": "gone.pth"}
    check(changed(config, "resume", "auto"))


# evaluate.py, predict.py, export


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"checkpoint": None}, "checkpoint is not given"),
        ({"input": None}, "input is not given: input=<image, folder or pattern>"),
        ({"annotations": "gone.json"}, "annotations: no file gone.json"),
        ({"tile": True}, "tile is true; it must be auto, false, or [height, width] from 64 pixels up"),
        ({"tile": [64]}, "tile is [64]; it must be auto, false, or [height, width] from 64 pixels up"),
    ],
)
def test_bad_settings_of_a_prediction(settings, sentence):
    with pytest.raises(CocosegError) as raised:
        check_predict(PredictConfig(**{"checkpoint": __file__, "input": ".", **settings}))
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((0, "auto"), "scale"), ((None, [64, 63]), "tile"), ((None, [512.0, 512]), "tile")],
)
def test_bad_arguments_of_a_predictor(arguments, key):
    with pytest.raises(CocosegError, match=rf"^{key} is "):
        check_prediction(*arguments)
    check_prediction(2, (64, 96))


def test_formats_of_a_model():
    check_export(["pth", "torch_export"], key="export")
    with pytest.raises(CocosegError, match=r"^formats: 'tflite' is no format; known: pth, onnx"):
        check_export(["tflite"], key="formats")
