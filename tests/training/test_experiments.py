"""Every preset in conf/experiment runs two steps with its own optimizer, clipping, augmentation and loss."""

import json
from functools import cache
from pathlib import Path

import PIL.Image
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cocoseg.budget.open_run import Run
from cocoseg.cli import resolve_config
from cocoseg.config import Config
from cocoseg.inference.model import load_model
from cocoseg.training.recipe import train
from conftest import ROOT

CONF = ROOT / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

# Everything is as users get it, apart from:
SMALLER = (
    "data.image_size=[64,64]",  # time
    "data.batch_size=2",
    "data.num_workers=0",  # processes take a second each to start
    "data.cache_size=null",  # would be larger than image_size
    "prepare.workers=1",
    "trainer.max_time=null",  # two steps are the end, on a machine of any speed
    "trainer.max_epochs=-1",
    "trainer.max_steps=2",
    "trainer.check_val_every_n_epoch=null",
    "trainer.val_check_interval=2",
    "trainer.accelerator=cpu",
)
# Time: nets of the default width take a second for each checkpoint that they write.
NARROWER = {
    "UNet": {"base_channels": 4},
    "ResidualUNet": {"base_channels": 4},
    "TimmUNet": {"encoder": "test_resnet", "weights": None},  # and as many channels in each level
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the prepared data, one for all presets that prepare them alike."""
    return tmp_path_factory.mktemp("experiments")


@cache
def composed(experiment: str, root: Path, shapes_root: Path) -> DictConfig:
    """Compose the settings of a preset, which takes as long as its two steps."""
    places = (
        f"data.root={root}",
        f"data.images={shapes_root}/images",
        f"data.annotations={shapes_root}/annotations/instances.json",
        "data.prepared_dir=null",
        "data.val_images=null",
        "data.val_annotations=null",
        "data.shapes=null",
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"experiment={experiment}", *places, *SMALLER])
    config.model.update(NARROWER[config.model["_target_"].rpartition(".")[2]])
    if "decoder_channels" in config.model:
        config.model.decoder_channels = [8] * len(config.model.decoder_channels)
    return config


@pytest.mark.parametrize(
    ("experiment", "precision"),
    [
        # Each one in one of the two in the fast tests.
        pytest.param(experiment, precision, marks=[pytest.mark.slow] * ((place + number) % 2))
        for place, experiment in enumerate(EXPERIMENTS)
        for number, precision in enumerate(("32-true", "bf16-mixed"))
    ],
)
def test_every_experiment_trains(experiment, precision, shapes_root, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    of_precision = {"trainer": {"precision": precision}}
    config = resolve_config(OmegaConf.merge(composed(experiment, root, shapes_root), of_precision), Config)
    run_dir = tmp_path / "run"

    train(config, Run(run_dir))

    steps = {}
    for name in ("best", "last"):
        content = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True, mmap=True)
        steps[name] = content["global_step"]
    assert steps == {"best": 2, "last": 2}
    model = load_model(run_dir / "segmentation_model.pth")
    assert model(torch.zeros(1, 3, 20, 30)).shape == (1, 7, 20, 30)
    metrics = json.loads((run_dir / "metrics.json").read_bytes())
    assert list(metrics["iou"]) == model.labels.names
    assert metrics["miou"] == model.scores["miou"]
    assert 0 <= metrics["pixel_accuracy"] <= 1
    with PIL.Image.open(run_dir / "examples.png") as picture:
        assert picture.width == 4 * (192 + 4) - 4
    assert list(run_dir.glob("events.out.tfevents.*"))
