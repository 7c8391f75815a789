"""Every preset in conf/experiment, on tiny data and for two steps."""

import json

import PIL.Image
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import cocoseg.cli  # noqa: F401  registers the schema
from cocoseg.budget import Budget
from cocoseg.checks import check
from cocoseg.export import load_model
from cocoseg.training import train
from conftest import ROOT
from tiny import TINY_RUN

CONF = ROOT / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

# Tiny ones of each network.
NETWORKS = {
    "unet": ("model.base_channels=2", "model.depth=2"),
    "residual": ("model.base_channels=2", "model.depth=2"),
    "resnet_unet": ("model.encoder=resnet18", "model.decoder_channels=[4,4,4,4,4]", "model.weights=null"),
}
OF_ANY = tuple(override for override in TINY_RUN if not override.startswith("model."))
TINY = (
    *OF_ANY,
    "data.cache_size=null",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.precision=32-true",
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains(experiment, shapes_root, tmp_path):
    places = (
        f"data.root={shapes_root}",
        f"data.images={shapes_root}/images",
        f"data.annotations={shapes_root}/annotations/instances.json",
        f"data.prepared_dir={tmp_path}/prepared",
        "data.val_images=null",
        "data.val_annotations=null",
        "data.shapes=null",
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"experiment={experiment}", *places, *TINY]
        module = compose("train", chosen).model["_target_"].split(".")[1]
        config = OmegaConf.to_object(compose("train", [*chosen, *NETWORKS[module]]))
    check(config)
    run_dir = tmp_path / "run"

    exit_code = train(config, run_dir, Budget(None))

    assert exit_code == 0
    steps = {}
    for name in ("best", "last"):
        content = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
        steps[name] = content["global_step"]
    assert steps == {"best": 2, "last": 2}
    model = load_model(run_dir / "segmentation_model.pth")
    assert model(torch.zeros(1, 3, 20, 30)).shape == (1, 7, 20, 30)
    metrics = json.loads((run_dir / "metrics.json").read_bytes())
    assert list(metrics["iou"]) == model.labels.names
    assert metrics["miou"] == model.scores["miou"]
    assert 0 <= metrics["pixel_accuracy"] <= 1
    with PIL.Image.open(run_dir / "examples.png") as picture:
        assert picture.width == 4 * (160 + 4) - 4
    assert list(run_dir.glob("events.out.tfevents.*"))
