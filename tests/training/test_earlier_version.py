"""A run folder made by version 0.1.0, with settings that are gone since: it still serves.

Made by `train.py data=shapes data.root=shapes data.shapes.images=24 data.image_size=[32,32] data.batch_size=4
model=unet_residual model.base_channels=2 model.depth=3 model.deep_supervision=true ema=0.9
data.sampling=balanced trainer.precision=32-true trainer.max_time="00:00:06:00" trainer.max_epochs=2
run_dir=run`. `last.ckpt` is its best.ckpt.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import cocoseg
from conftest import run_program

RUN = Path(__file__).parents[1] / "fixtures" / "run_0.1.0"
SETTINGS = (
    "data=shapes",
    "data.root=shapes",
    "data.shapes.images=24",
    "data.image_size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=0",
    "model=unet_residual",
    "model.base_channels=2",
    "model.depth=3",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # as the run was made
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder that holds `run/`, as the user's current folder did."""
    shutil.copytree(RUN, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copy(checkpoints / "last.ckpt", checkpoints / "best.ckpt")
    return tmp_path


def test_the_model_and_the_checkpoint_are_the_averaged_network():
    """The exported weights were the averaged ones, which the checkpoint holds beside the trained ones."""
    model = cocoseg.load_model(RUN / "segmentation_model.pth")
    checkpoint = cocoseg.load_model(RUN / "checkpoints" / "last.ckpt")
    image = torch.randn(1, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    logits = model(image)
    assert logits.shape == (1, 7, 40, 24)
    assert torch.equal(logits, checkpoint(image))


@pytest.mark.slow
def test_it_is_evaluated_on_its_own_data(folder: Path):
    assert run_program("prepare", *SETTINGS[:3], cwd=folder).returncode == 0
    done = run_program("evaluate", "checkpoint=run/segmentation_model.pth", "run_dir=scores", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "data.sampling" in done.stdout  # named once, as ignored
    scores = json.loads((folder / "scores" / "metrics.json").read_bytes())
    before = json.loads((RUN / "metrics.json").read_bytes())
    assert scores["network"]["miou"] == pytest.approx(before["miou"], abs=1e-6)


@pytest.mark.slow
def test_it_is_resumed_and_extended(folder: Path):
    resumed = ("run_dir=run", "resume=auto", "trainer.max_epochs=4", "budget.extend='00:00:02:00'")
    done = run_program("train", *SETTINGS, *resumed, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "averaged weights are left out" in done.stdout
    outcome = json.loads((folder / "run" / "outcome.json").read_bytes())
    assert (outcome["state"], outcome["epochs"]) == ("finished", 4)
    ledger = json.loads((folder / "run" / "budget.json").read_bytes())
    before = json.loads((RUN / "budget.json").read_bytes())
    assert ledger["limit"] == before["limit"] + 120
    assert ledger["used"] > before["used"]
    assert cocoseg.load_model(folder / "run" / "segmentation_model.pth")


@pytest.mark.slow
def test_a_removed_setting_is_refused_where_it_is_typed(folder: Path):
    done = run_program("train", *SETTINGS, "ema=0.9", "run_dir=run", "resume=auto", cwd=folder)
    assert done.returncode == 2
    assert "ema is gone" in done.stderr or "EMAWeightAveraging" in done.stderr
    assert (folder / "run" / "config.yaml").read_bytes() == (RUN / "config.yaml").read_bytes()
