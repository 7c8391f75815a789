"""The command line of evaluate.py, and formats at the end of train.py, run as a user runs them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import SMALL, run_here, run_program


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Four steps, a model in two formats, and its evaluation by name alone. Tests must not change them."""
    cwd = tmp_path_factory.mktemp("trained")
    precise = ("trainer.precision=32-true", "trainer.accelerator=cpu")
    options = (
        "seed=5",
        "data.val_fraction=0.25",
        "trainer.max_steps=4",
        "export=[torch_export]",
        "run_dir=run",
    )
    train = run_program("train", *SMALL, *precise, *options, cwd=cwd)
    evaluate = run_program("evaluate", "checkpoint=run/segmentation_model.pth", cwd=cwd)
    return SimpleNamespace(cwd=cwd, train=train, evaluate=evaluate)


@pytest.mark.slow
def test_a_run_ends_with_the_formats_that_were_asked_for(trained: SimpleNamespace) -> None:
    assert trained.train.returncode == 0, trained.train.stderr
    assert trained.train.stderr == ""
    assert re.search(
        r"^run/segmentation_model\.pt2  [\d.]+ MB; logits ",
        trained.train.stdout,
        re.MULTILINE,
    )
    program = torch.export.load(trained.cwd / "run/segmentation_model.pt2").module()
    assert program(torch.zeros(2, 40, 24, 3, dtype=torch.uint8)).shape == (2, 40, 24)


@pytest.mark.slow
def test_a_model_alone_is_scored_on_the_images_that_its_training_held_out(trained: SimpleNamespace) -> None:
    assert trained.evaluate.returncode == 0, trained.evaluate.stderr
    assert trained.evaluate.stderr == ""
    (folder,) = (trained.cwd / "outputs/evaluate").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = json.loads((trained.cwd / "run/metrics.json").read_text())
    assert metrics["images"] == 3
    assert metrics["network_size"] == [32, 32]
    assert metrics["network"]["miou"] == pytest.approx(expected["miou"], abs=1e-4)
    assert metrics["network"]["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-4)
    assert {"config.yaml", "per_class.csv", "worst.png", "gallery.html", "confusion.png"} < {
        path.name for path in folder.iterdir()
    }
    lines = trained.evaluate.stdout.splitlines()
    for start in ("class ", "background ", "mIoU (without background) ", "loss (cross entropy) ", "scores "):
        assert any(line.startswith(start) for line in lines), start
    assert any(line.split() == ["95", "%", "interval", "own", "size", "32x32"] for line in lines)


def assert_refused(overrides: tuple[str, ...], message: str, cwd: Path) -> None:
    done = run_here("evaluate", *overrides, cwd=cwd)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=0", "split=val: the model was trained on "),
        ("data.labels={all:[square,ring]}", "the model has other labels than these data: "),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(
    trained: SimpleNamespace, override: str, message: str
) -> None:
    assert_refused(("checkpoint=run/segmentation_model.pth", override), message, trained.cwd)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "checkpoint is not given: checkpoint=<segmentation_model.pth>"),
        (("checkpoint=none.pth",), "checkpoint: no file none.pth"),
        (
            ("checkpoint=model.pth",),
            "data.annotations: no file data/coco/annotations/instances_train2017.json, and no config.yaml "
            "beside the checkpoint names the data of its training; give data=… or data.root=…\n",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_a_one_line_error(tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    (tmp_path / "model.pth").touch()
    assert_refused(overrides, message, tmp_path)
