"""Parts of a user's own, as docs/extending.md shows them; mistakes in them show before the data are read."""

import csv
import errno
import inspect
import json
import os
import re
import sys
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from cocoseg.budget.open_run import Run
from cocoseg.budget.schedule import factor_of
from cocoseg.cli import resolve_config
from cocoseg.config import Config, ScheduleConfig
from cocoseg.config_checks import ELSEWHERE
from cocoseg.data.own_dataset import open_own_splits
from cocoseg.errors import CocosegError
from cocoseg.inference.model import load_model
from cocoseg.overrides import Command
from cocoseg.training.build import build_loggers, build_loss, open_loggers
from cocoseg.training.event_file import CSVLogger
from cocoseg.training.finish import dashboards
from cocoseg.training.losses import CrossEntropyLoss, try_loss
from cocoseg.training.recipe import train
from conftest import ROOT, SMALL, run_here, run_program
from tiny import TINY_RUN

PAGE = ROOT / "docs" / "extending.md"
WITH = ("run_dir=run", "trainer.max_steps=2")


@pytest.fixture(scope="module", autouse=True)
def my_parts(tmp_path_factory: pytest.TempPathFactory):
    """The module that the page shows."""
    folder = tmp_path_factory.mktemp("parts")
    (code,) = re.findall(r"```python\n(import math.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_parts.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import my_parts

        yield my_parts
    del sys.modules["my_parts"]


# ---- a run with all of them


class Bar(L.pytorch.callbacks.ProgressBar):
    def on_train_end(self, *_) -> None:
        print("my own bar")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of 50 epochs at most, in which validation mIoU would have to rise by 2 to count."""
    folder = tmp_path_factory.mktemp("run")
    ended = run_here(
        "train",
        *SMALL,
        *("run_dir=run", "trainer.max_epochs=50", "trainer.log_every_n_steps=1"),
        *("logger=[csv,tensorboard]", "callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
        *("callbacks.early_stopping.min_delta=2", "callbacks.bar._target_=test_extending.Bar"),
        *("schedule._target_=my_parts.poly", "schedule.power=2", "optimizer.lr=0.01"),
        *("loss._target_=my_parts.FocalLoss", "loss.gamma=1.5"),
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    with (folder / "run" / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(folder=folder / "run", out=ended.stdout, rows=rows)


def test_early_stopping_ends_a_run_in_order(done):
    outcome = json.loads((done.folder / "outcome.json").read_bytes())
    assert (outcome["state"], outcome["epochs"]) == ("finished", 2)
    assert outcome["reason"].startswith("Monitored metric val/miou did not improve in the last 1 records.")
    assert f"ended early  {outcome['reason']}\n" in done.out
    assert (done.folder / "segmentation_model.pth").is_file()


def test_each_logger_gets_numbers_and_settings(done):
    settings = yaml.safe_load((done.folder / "csv" / "version_0" / "hparams.yaml").read_text())
    assert settings["loss"] == {
        "_target_": "my_parts.FocalLoss", "label_smoothing": 0.0, "class_weights": "none", "gamma": 1.5,
    }  # fmt: skip
    assert settings["data"]["batch_size"] == 4
    scores = [row["val/miou"] for row in done.rows if row.get("val/miou")]
    assert len(scores) == 2
    best = json.loads((done.folder / "metrics.json").read_bytes())["miou"]
    assert max(map(float, scores)) == pytest.approx(best)
    assert list(done.folder.glob("events.out.tfevents.*"))  # TensorBoard's, though it comes second


def test_the_dashboards_that_there_are_are_named(done):
    lines = [line for line in done.out.splitlines() if "dashboard" in line]
    assert [line.split("dashboard")[1].split() for line in lines] == [
        ["run/csv/version_0"],
        ["tensorboard", "--logdir", "."],
    ]


def test_the_learning_rate_follows_the_schedule(done):
    """Two steps an epoch, 100 in all."""
    rates = {int(row["step"]): float(row["train/lr"]) for row in done.rows if row.get("train/lr")}
    assert len(rates) == 4
    for step, rate in rates.items():
        assert rate == pytest.approx(0.01 * (1 - step / 100) ** 2, rel=1e-4)


def test_a_progress_bar_of_the_users_takes_the_place_of_ours(done):
    assert done.out.count("my own bar") == 1
    assert not re.search(r"epoch \d+ of ~", done.out)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    done = run_program(
        "train", *SMALL, *WITH, "logger=wandb", "logger.wandb.offline=true", cwd=tmp_path, WANDB_SILENT="true"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert f"wandb sync {folder.relative_to(tmp_path)}" in done.stdout
    assert len(list(folder.glob("files/media/images/validation_classes/*.png"))) == 2
    assert len(list(folder.glob("files/media/images/validation_examples/*.png"))) == 1


@pytest.mark.slow
def test_mlflow_without_a_server(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    done = run_program("train", *SMALL, *WITH, "logger=mlflow", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db" in done.stdout
    client = tracking.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cocoseg").experiment_id])
    assert run.data.params["data/batch_size"] == "4"
    assert 0 <= run.data.metrics["val/miou"] <= 1
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/images/validation_classes*.png"))) == 2


# ---- mistakes


@pytest.fixture(scope="module")
def settings(shapes_root: Path) -> Config:
    places = (f"data.root={shapes_root}", "data.images=${data.root}/images")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        annotations = "data.annotations=${data.root}/annotations/instances.json"
        composed = compose("train", ["data=custom", *places, annotations, *TINY_RUN, "trainer.max_steps=1"])
        return resolve_config(composed, Config)


FOCAL, POLY = "my_parts.FocalLoss", "my_parts.poly"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "loss",
            {"_target_": FOCAL, "gama": 1},
            f"loss.gama: {FOCAL} has no such argument; did you mean loss.gamma?",
        ),
        ("loss", {"_target_": "my_parts.FocalLos"}, "loss: my_parts.FocalLos can't be imported and called ("),
        ("loss", {"gamma": 1}, "loss: no _target_ in it, the class or function to call"),
        (
            "loss.label_smoothin",
            0.1,
            "loss.label_smoothin: cocoseg.CrossEntropyLoss has no such argument; did",
        ),
        (
            "optimizer.lrr",
            1,
            "optimizer.lrr: torch.optim.Adam has no such argument; did you mean optimizer.lr?",
        ),
        ("optimizer.lr", -1, "optimizer: Invalid learning rate: -1"),
        (
            "trainer.max_epoch",
            3,
            "trainer.max_epoch: lightning.Trainer has no such argument; did you mean trainer.max_epochs?",
        ),
        ("trainer.precision", "bf17", "trainer: Precision 'bf17' is invalid. Allowed precision values: "),
        ("trainer.accelerator", "gpuu", "trainer: You selected an invalid accelerator name: "),
        (
            "trainer.enable_checkpointing",
            False,
            "trainer: Trainer was configured with `enable_checkpointing=",
        ),
        ("trainer.plugins", [{"_target_": "no_such.Plugin"}], "trainer.plugins: no_such.Plugin can't be "),
        (
            "logger",
            {"mine": {"_target_": POLY, "progress": 1}},
            f"logger.mine: {POLY} makes a float; it must make a Logger of lightning",
        ),
        (
            "logger",
            {"mine": {"_target_": "no_such.L"}},
            "logger.mine: no_such.L can't be imported and called",
        ),
        (
            "callbacks",
            {"mine": {"_target_": FOCAL}},
            f"callbacks.mine: {FOCAL} makes a FocalLoss; it must make a Callback of lightning",
        ),
        (
            "callbacks",
            {"mine": {"_target_": "my_parts.StopAt", "iou": 1}},
            "callbacks.mine.iou: my_parts.StopAt has no such argument; did you mean callbacks.mine.miou?",
        ),
        (
            "schedule",
            ScheduleConfig(own={"_target_": POLY, "powr": 2}),
            f"schedule: {POLY} fails at 0.0: poly() got an unexpected keyword argument 'powr'",
        ),
        (
            "schedule",
            ScheduleConfig(own={"_target_": "operator.neg"}),
            "schedule: operator.neg is -0.5 at 0.5",
        ),
    ],
)
def test_mistakes_show_before_the_data_are_prepared(settings, monkeypatch, tmp_path, key, value, sentence):
    monkeypatch.setattr("cocoseg.data.datamodule.prepare", lambda config: 1 / 0)
    config = deepcopy(settings)
    *parents, name = key.split(".")
    node = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    node.update({name: value}) if isinstance(node, dict) else setattr(node, name, value)
    with pytest.raises(CocosegError) as raised:
        train(config, Run(tmp_path / "run"))
    assert raised.value.sentence.startswith(sentence)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_good_settings_reach_the_preparation(settings, monkeypatch, tmp_path):
    monkeypatch.setattr("cocoseg.data.datamodule.prepare", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(deepcopy(settings), Run(tmp_path / "run"))


def test_every_argument_of_lightnings_trainer_is_a_setting():
    known = set(inspect.signature(L.Trainer).parameters)
    settings = yaml.safe_load((ROOT / "conf" / "trainer" / "default.yaml").read_text())
    assert settings.keys() - {"_target_"} == known - {key.removeprefix("trainer.") for key in ELSEWHERE}


# ---- a loss


class Takes(nn.Module):
    """A loss that takes all that it is given."""

    def __init__(self, **options):
        super().__init__()
        self.options = options


@pytest.mark.parametrize(
    ("changes", "typed", "options"),
    [
        ({}, (), {}),
        ({}, ("loss._target_=x", "loss.label_smoothing=0"), {"label_smoothing": 0.0}),
        ({"label_smoothing": 0.1}, (), {"label_smoothing": 0.1}),
        ({"class_weights": "enet"}, (), {"class_weights": [1.0, 1.0]}),
        ({"class_weights": [1, 2], "dice": 1.0, "mine": 3}, (), {"class_weights": [1, 2], "mine": 3}),
    ],
)
def test_a_loss_of_ones_own_gets_no_unchanged_key_of_the_preset(settings, tmp_path, changes, typed, options):
    preset = {"label_smoothing": 0.0, "class_weights": "none"}
    config = Config(loss={"_target_": "test_extending.Takes", **preset, **changes})
    assert build_loss(config, Run(tmp_path, command=Command(typed))).options == options


def test_our_losses_get_their_keys(tmp_path):
    config = Config(
        loss={"_target_": "cocoseg.CrossEntropyLoss", "label_smoothing": 0.5, "class_weights": "none"}
    )
    loss = build_loss(config, Run(tmp_path))
    assert (loss.label_smoothing, loss.class_weights) == (0.5, None)


def test_what_a_loss_must_return():
    try_loss(CrossEntropyLoss(), "mine", 3)
    try_loss(CrossEntropyLoss(class_weights=[1.0, 2.0, 3.0]), "mine", 3)
    try_loss(lambda logits, mask: nn.functional.avg_pool2d(logits, 11).mean(), "mine", 3)  # windows
    taken = r"logits \(2, 3, 32, 32\) float32 and mask \(2, 32, 32\) int64"
    for loss, sentence in (
        (
            nn.CrossEntropyLoss(reduction="none"),
            rf"^loss: mine returns \(2, 32, 32\) for {taken}; it must return a sc",
        ),
        (lambda logits, mask: 0.5, rf"^loss: mine returns a float for {taken}"),
        (CrossEntropyLoss(class_weights=[1.0, 2.0]), rf"^loss: mine fails on {taken}: "),
        (lambda logits: 1 / 0, rf"^loss: mine fails on {taken}: .*takes 1 positional argument"),
    ):
        with pytest.raises(CocosegError, match=sentence):
            try_loss(loss, "mine", 3)


# ---- schedules


def test_one_cycle_is_torchs(my_parts):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OneCycleLR(optimizer, max_lr=1.0, total_steps=101, cycle_momentum=False)
    factor = factor_of(ScheduleConfig(own={"_target_": "my_parts.one_cycle"}))
    for step in range(100):
        if not 27 < step < 32:  # torch's peak is at a whole step
            assert factor(step / 100) == pytest.approx(scheduler.get_last_lr()[0], abs=0.03)
        optimizer.step()
        scheduler.step()


def test_arguments_of_a_schedule(my_parts):
    assert factor_of(ScheduleConfig(own={"_target_": POLY, "power": 2}))(0.5) == 0.25
    assert factor_of(ScheduleConfig(name="constant"))(0.5) == 1.0


# ---- loggers


def test_loggers_of_any_shape_are_built(tmp_path):
    csv_file = {"_target_": "cocoseg.training.event_file.CSVLogger", "name": "csv"}
    (named,) = build_loggers({"csv": csv_file, "gone": None}, tmp_path)
    (alone,) = build_loggers(
        csv_file, tmp_path
    )  # as in a preset of the user's, from before loggers had names
    (elsewhere,) = build_loggers({"csv": {**csv_file, "save_dir": str(tmp_path / "x")}}, tmp_path)
    assert [one.root_dir for one in (named, alone)] == 2 * [str(tmp_path / "csv")]
    assert elsewhere.root_dir == str(tmp_path / "x" / "csv")
    assert build_loggers({}, tmp_path) == []
    assert list(dashboards([named], tmp_path)) == [str(tmp_path / "csv" / "version_0")]


def test_a_table_on_a_full_disk_waits(tmp_path, monkeypatch, caplog):
    logger = CSVLogger(tmp_path, name="csv")
    logger.log_metrics({"a": 1.0}, 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            logger.experiment, "metrics_file_path", str(tmp_path / "csv")
        )  # a folder: it can't be opened
        logger.save()
        logger.log_metrics({"a": 2.0}, 1)
        logger.save()
    assert [record.message for record in caplog.records] == [
        "metrics.csv can't be written now (Is a directory); training goes on"
    ]
    logger.save()
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    assert [row["a"] for row in rows] == ["1.0", "2.0"]


@pytest.mark.parametrize("place", [(csv.DictWriter, "writerows"), (Path, "replace")], ids=["rows", "file"])
def test_a_table_keeps_its_rows_when_a_new_column_meets_a_full_disk(place, tmp_path, monkeypatch):
    logger, path = CSVLogger(tmp_path, name="csv"), tmp_path / "csv" / "version_0" / "metrics.csv"
    logger.log_metrics({"b": 1.0}, 0)
    logger.save()
    earlier = path.read_text()
    logger.log_metrics({"a": 2.0, "b": 3.0}, 1)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(*place, Mock(side_effect=full))
        logger.save()
    assert path.read_text() == earlier
    logger.log_metrics({"b": 4.0}, 2)
    logger.save()
    logger.log_metrics({"b": 5.0}, 3)
    logger.save()
    assert path.read_text().split() == ["a,b,step", ",1.0,0", "2.0,3.0,1", ",4.0,2", ",5.0,3"]
    assert list(path.parent.iterdir()) == [path]


class BegunRun:
    """A stand-in for a run of Weights & Biases, which need not be installed."""

    def __init__(self):
        self.exit_codes = []

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)
        sys.modules["wandb"].run = None


class Wandb(WandbLogger):
    """Goes on with the run of the process, or begins one, as its base class does."""

    def __init__(self):
        self.run = None

    @property
    def experiment(self) -> BegunRun:
        wandb = sys.modules["wandb"]
        self.run = self.run or wandb.run or BegunRun()
        wandb.run = self.run
        return self.run


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    module = SimpleNamespace(run=None, finish=Mock())
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_run_of_weights_and_biases_that_training_began_is_finished_once(wandb):
    for error, code in ((None, 0), (ValueError("NaN"), 1), (SystemExit(143), 1)):
        with suppress(ValueError, SystemExit), open_loggers([Wandb(), Wandb()]):
            run = wandb.run
            assert run.exit_codes == []
            if error:
                raise error
        assert run.exit_codes == [code]
        assert wandb.run is None


def test_a_logger_that_can_not_begin_leaves_no_run_of_another_open(wandb):
    class Fails(CSVLogger):
        experiment = property(lambda self: 1 / 0)

    first = Wandb()
    with pytest.raises(CocosegError, match="Fails can't begin"), open_loggers([Fails("x"), first]):
        pass
    assert first.run.exit_codes == [1]


def test_a_run_of_weights_and_biases_that_the_user_began_goes_on(wandb, tmp_path):
    users = wandb.run = BegunRun()
    build_loggers({}, tmp_path)
    with open_loggers([Wandb()]):
        assert wandb.run is users
    assert (users.exit_codes, wandb.run) == ([], users)
    wandb.finish.assert_not_called()


# ---- data


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six photographs to train on and two to validate on, of two sizes: a car, and pixels to ignore below."""
    for number in range(8):
        mask = np.zeros((40, 30 + 20 * (number % 2)), np.uint8)
        mask[10:20, 10:20], mask[35:] = 2, 255
        image = np.where(mask[..., None] == 2, 250, number).astype(np.uint8)
        path = tmp_path / "streets" / ("val" if number > 5 else "train") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image.repeat(3, 2)).save(path)
        PIL.Image.fromarray(mask).save(path.with_suffix(".png"))
    return tmp_path / "streets"


PERSPECTIVE = "{_target_: torchvision.transforms.v2.RandomPerspective, distortion_scale: 0.3, p: 0.9}"


def test_a_data_set_of_ones_own(folders, tmp_path):
    own = ("data._target_=my_parts.Folders", f"data.folder={folders}", f"augment.extra=[{PERSPECTIVE}]")
    more = ("run_dir=run", "trainer.max_steps=2", "loss.class_weights=enet", "model.depth=2")
    small = ("data.image_size=[32,32]", "data.batch_size=3", "model.base_channels=4", "trainer.max_time=null")
    done = run_here("train", *own, *more, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "prepared").exists()
    model = load_model(tmp_path / "run" / "segmentation_model.pth")
    assert model.labels.names == ["background", "road", "car"]
    assert model.predict(folders / "val" / "6.jpg").shape == (40, 30)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_bytes())
    assert scores["iou"]["road"] is None  # does not occur

    refused = run_here("evaluate", "checkpoint=run/segmentation_model.pth", cwd=tmp_path)
    assert refused.returncode == 2
    assert "the data set of the training, my_parts.Folders, is not in COCO format" in refused.stderr
    refused = run_here("prepare", *own, cwd=tmp_path)
    assert refused.stderr == "error: data._target_: only train.py takes a data set of one's own\n"


def test_items_of_a_data_set_of_ones_own_are_resized_as_ours(folders):
    train, val = open_own_splits({"_target_": "my_parts.Folders", "folder": str(folders)}, [20, 30], [10, 15])
    assert (len(train), len(val)) == (6, 2)
    image, mask = train.__getitems__([0, 1])
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == (
        (2, 3, 20, 30), torch.uint8, (2, 20, 30), torch.uint8,
    )  # fmt: skip
    assert mask[0, 7, 15] == 2
    assert (mask[:, 18:] == 255).all()
    assert train.class_counts().shape == (6, 3)
    assert train.class_counts()[0, 2] == (mask[0] == 2).sum()


class Bad:
    """A data set with one item and one fault."""

    def __init__(self, split: str, fault: str):
        names = {"no background": ["cat"], "no classes": None, "val": ["background", split], "number": 3}
        names["array"] = np.array(["background", "cat"])
        self.classes, self.fault = names.get(fault, ["background", "cat"]), fault

    def __len__(self) -> int:
        return len(iter(())) if self.fault == "iterable" else int(self.fault != "empty")

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.int64)
        return {
            "last": (image.movedim(0, -1), mask),
            "float": (image.float(), mask),
            "bytes": (image, mask.byte()),
            "large": (image, mask + 2),
            "negative": (image, mask - 1),
            "alone": image,
            "array": (image, mask + 3),
        }[self.fault]


ITEM = r"^data: test_extending\.Bad\(split='train'\): item 0 "


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("no background", r"\) has 1 items and the classes \['cat'\]; it must have items, and as `cl"),
        ("no classes", r"\) has 1 items and the classes \[\]"),
        ("empty", r"\) has 0 items"),
        ("val", r"the classes of train and val differ: class 1 is 'train' \(id 1\) against 'val'"),
        ("last", rf"{ITEM}is image \(4, 5, 3\) torch\.uint8, mask \(4, 5\) torch\.int64 up to 0; it must"),
        ("float", rf"{ITEM}is image \(3, 4, 5\) torch\.float32"),
        ("bytes", rf"{ITEM}is image .* mask \(4, 5\) torch\.uint8 up to 0"),
        ("large", rf"{ITEM}is image .* up to 2; .* class indices below 2 and 255"),
        ("negative", ITEM),
        ("alone", f"{ITEM}fails: "),
        ("array", rf"{ITEM}is image .* up to 3"),
        ("number", r"'int' object is not iterable; it must be .* with a list as `classes`"),
        ("iterable", r"\): .* has no len\(\); it must be a map-style data set, with `__len__`"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(fault, sentence):
    with pytest.raises(CocosegError, match=sentence):
        open_own_splits({"_target_": "test_extending.Bad", "fault": fault}, [4, 5], [4, 5])[0].class_counts()
