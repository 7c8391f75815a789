"""Trainings on a GPU, and their models: what precision, memory and libraries make different there."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from cocoseg.budget.open_run import Run
from cocoseg.cli import resolve_config
from cocoseg.config import Config
from cocoseg.errors import TrainingError
from cocoseg.inference.model import load_model
from cocoseg.training import batch_size
from cocoseg.training.recipe import train
from conftest import ROOT, run_here
from tiny import TINY_RUN

pytestmark = pytest.mark.gpu

ON_GPU = (*TINY_RUN[:-1], "trainer.accelerator=gpu", "logger=none", "model.base_channels=8")
LEARN = ("trainer.max_epochs=30", "trainer.check_val_every_n_epoch=10", "optimizer.lr=1e-2")
PRECISE = ("trainer.precision=32-true", "augment=none")
Trained = Callable[..., Path]


@pytest.fixture
def places(shapes_root: Path, tmp_path: Path) -> tuple[str, ...]:
    return (
        "data=custom",
        f"data.images={shapes_root}/images",
        f"data.annotations={shapes_root}/annotations/instances.json",
        f"data.prepared_dir={tmp_path}/prepared",
        "data.val_fraction=0.25",
    )


@pytest.fixture
def run(places: tuple[str, ...], tmp_path: Path) -> Iterator[Trained]:
    """Trains with overrides; returns the run folder."""

    def trained(name: str, *overrides: str) -> Path:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = resolve_config(compose("train", [*places, *ON_GPU, *overrides]), Config)
        train(config, Run(tmp_path / name, checkpoint=config.ckpt_path))
        return tmp_path / name

    tf32 = torch.get_float32_matmul_precision()
    yield trained
    torch.set_float32_matmul_precision(tf32)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU of 2 GiB."""
    gc.collect()
    torch.cuda.empty_cache()
    memory, total = 2 * 2**30, torch.cuda.mem_get_info()[1]
    free = lambda device: (memory - torch.cuda.memory_reserved(device), memory)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    torch.cuda.set_per_process_memory_fraction(memory / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(
            value,
            second["state_dict"][name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize("precision", ["auto", "16-mixed", "bf16-true", "32-true"])
def test_it_learns_in_every_precision(run, precision):
    folder = run(precision, f"trainer.precision={precision}", *LEARN, "augment=light")
    checkpoint = last(folder)
    assert checkpoint["global_step"] == 30 * 4
    assert all(group["fused"] for state in checkpoint["optimizer_states"] for group in state["param_groups"])
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert json.loads((folder / "metrics.json").read_bytes())["miou"] > 0.2


@pytest.mark.parametrize(
    "overrides",
    [
        ("augment=strong", "loss=ce_dice", "loss.class_weights=enet", "augment.start_size=0.5"),
        ("data.num_workers=2", "data.cache=false", "trainer.gradient_clip_val=0.1", "optimizer=adamw"),
        ("+callbacks.average._target_=lightning.pytorch.callbacks.EMAWeightAveraging",),
        ("trainer.accumulate_grad_batches=2", "schedule.name=trapezoid", "optimizer=sgd"),
    ],
    ids=["augmentation and loss", "workers and clipping", "averaged weights", "accumulation"],
)
def test_settings(run, overrides):
    folder = run("settings", *overrides, "trainer.max_epochs=3", "data.image_size=[64,64]")
    assert all(value.isfinite().all() for value in last(folder)["state_dict"].values())
    assert (folder / "examples.png").is_file()


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(run):
    """All images are in one batch: a resumed run begins with the first epoch's order."""
    same = (*PRECISE, "data.batch_size=18", "optimizer=sgd", "schedule.name=constant", "schedule.warmup=0")
    whole = run("whole", *same, "trainer.max_epochs=4")
    first = run("first", *same, "trainer.max_epochs=2")
    second = run("second", *same, "trainer.max_epochs=4", f"ckpt_path={first}/checkpoints/last.ckpt")
    assert last(second)["global_step"] == last(whole)["global_step"] == 4
    assert_close(last(second), last(whole), tolerance=1e-2)  # a GPU adds in any order


def test_the_gpu_trains_as_the_cpu_does(run):
    two_steps = (*PRECISE, "trainer.max_steps=2", "optimizer=sgd")
    ours, theirs = run("gpu", *two_steps), run("cpu", *two_steps, "trainer.accelerator=cpu")
    assert_close(last(ours), last(theirs), tolerance=5e-3)  # TF32


def test_a_deterministic_training_is_the_same_twice(run, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    overrides = ("trainer.deterministic=true", "augment=default", "trainer.max_steps=4")
    try:
        first, second = last(run("first", *overrides)), last(run("second", *overrides))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(first, second, tolerance=0)


def test_the_batch_that_fits_is_found(run, little_memory, monkeypatch):
    """Sixteen batches an epoch would allow 64 images."""
    monkeypatch.setattr(batch_size, "STEPS", 1)
    folder = run(
        "auto",
        *(
            "data.batch_size=auto",
            "data.image_size=[512,512]",
            "model.base_channels=64",
            "trainer.max_epochs=1",
        ),
    )
    assert last(folder)["global_step"] > 1  # 16 images don't fit into one


def test_a_batch_that_does_not_fit_is_explained_before_the_first_step(run, little_memory):
    large = ("data.image_size=[512,512]", "model.base_channels=64", "data.batch_size=16")
    with pytest.raises(
        TrainingError, match=r"^out of memory with data\.batch_size=16; .* data\.batch_size=8 "
    ):
        run("large", *large, "augment.start_size=0.25", "trainer.max_epochs=2")


def test_a_compiled_network_trains(run):
    folder = run("compiled", "compile=true", *LEARN)
    assert json.loads((folder / "metrics.json").read_bytes())["miou"] > 0.2


@pytest.fixture
def trained(run: Trained) -> Path:
    """A model that predicts several classes."""
    return run("trained", *PRECISE, *LEARN) / "segmentation_model.pth"


def test_predictions_are_those_of_the_cpu(trained):
    pixels = torch.randint(
        0, 256, (3, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    on_cpu = load_model(trained)
    on_gpu = load_model(trained).cuda()
    for options in ({}, {"scale": 1.0, "tile": [64, 64]}, {"flip": True}):
        ours, theirs = (model.predict(pixels, **options) for model in (on_gpu, on_cpu))
        assert ours.shape == theirs.shape
        assert (ours == theirs).mean() > 0.99, options


def test_scores_are_those_of_the_cpu(trained, places, tmp_path):
    scores = {}
    for device in ("gpu", "cpu"):
        common = (f"checkpoint={trained}", f"trainer.accelerator={device}")
        done = run_here(
            "evaluate", *common, *places, *TINY_RUN[:4], f"run_dir={tmp_path}/evaluate_{device}", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        scores[device] = json.loads((tmp_path / f"evaluate_{device}" / "metrics.json").read_bytes())
    assert scores["gpu"]["network"]["miou"] == pytest.approx(scores["cpu"]["network"]["miou"], abs=5e-3)


def test_a_model_trained_on_a_gpu_is_exported(run):
    pytest.importorskip("onnxscript")
    folder = run("export", "export=[onnx]", "trainer.max_steps=2")
    assert (folder / "segmentation_model.onnx").is_file()
