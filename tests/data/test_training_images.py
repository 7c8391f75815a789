import json
import logging
import shutil
from pathlib import Path

import pytest
from msgspec.structs import asdict, replace

from cocoseg.config import EvaluateConfig
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.training_images import (
    FILE,
    keys_of,
    read_training_images,
    require_new,
    write_training_images,
)
from cocoseg.errors import CocosegError
from cocoseg.evaluation.images import open_images
from tiny import shapes_config


@pytest.fixture(scope="module")
def config(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    """Settings of a run that has written its training images."""
    folder = tmp_path_factory.mktemp("run")
    base = shapes_config(shapes_root, folder / "prepared")
    data = SegmentationDataModule(base)
    data.prepare_data()
    data.setup("fit")
    data.write_training_images(folder, ())
    (folder / "model.pth").touch()
    return EvaluateConfig(**{**asdict(base), "checkpoint": str(folder / "model.pth")})


def check_images(config: EvaluateConfig, **data: object) -> None:
    """Check the images to score as an evaluation does."""
    config = replace(config, data=replace(config.data, **data))
    require_new(
        open_images(config, (32, 32)).image_keys(), read_training_images(config.checkpoint), config.split
    )


def test_images_that_the_run_held_out_are_new(
    config: EvaluateConfig, caplog: pytest.LogCaptureFixture
) -> None:
    check_images(config)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_split_is_refused(config: EvaluateConfig) -> None:
    with pytest.raises(CocosegError, match=r"^split=val: the model was trained on \d of these 6 images, \S+"):
        check_images(replace(config, seed=7))


def test_more_annotations_change_the_split_which_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    """The settings and the name of the file are the same: only the list of images shows the difference."""
    images = Path(config.data.images)
    shutil.copytree(images, tmp_path / "images")
    content = json.loads(Path(config.data.annotations).read_bytes())
    first = content["images"][0]
    new = [{**first, "id": 1000 + n, "file_name": f"new{n}.png"} for n in range(8)]
    for image in new:
        shutil.copy(images / first["file_name"], tmp_path / "images" / image["file_name"])
    drawn = next(a for a in content["annotations"] if a["image_id"] == first["id"])
    content["annotations"] += [{**drawn, "id": 5000 + n, "image_id": 1000 + n} for n in range(8)]
    content["images"] = new + content["images"]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(CocosegError, match=r"^split=val: the model was trained on"):
        check_images(
            config,
            images=str(tmp_path / "images"),
            annotations=str(tmp_path / "instances.json"),
            prepared_dir=str(tmp_path / "prepared"),
        )


@pytest.mark.parametrize(("split", "images"), [("all", 24), ("train", 18)])
def test_other_splits_give_a_warning(
    config: EvaluateConfig, split: str, images: int, caplog: pytest.LogCaptureFixture
) -> None:
    check_images(replace(config, split=split))
    assert f"warning: the model was trained on 18 of these {images} images" in caplog.text


def test_other_images_of_the_same_names_are_new(config: EvaluateConfig, tmp_path: Path) -> None:
    images = shutil.copytree(config.data.images, tmp_path / "images")
    for path in images.iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    require_new(
        keys_of(images, sorted(p.name for p in images.iterdir())),
        read_training_images(config.checkpoint),
        "val",
    )


def test_the_list_includes_images_of_the_checkpoint_that_a_run_starts_from(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    last = tmp_path / "first/checkpoints/last.ckpt"
    last.touch()
    write_training_images(tmp_path / "first", [("a.jpg", 1)])
    write_training_images(tmp_path / "second", [("b.jpg", 2)], (str(last), None, "IMAGENET1K_V2"))
    assert read_training_images(str(tmp_path / "second/segmentation_model.pth")) == {
        ("a.jpg", 1),
        ("b.jpg", 2),
    }


def test_a_missing_list_is_a_warning_and_a_damaged_one_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_training_images(str(tmp_path / "model.pth")) is None
    require_new([("a.jpg", 1)], None, "val")
    assert "no training_images.json beside the model: it may have been trained on" in caplog.text
    (tmp_path / FILE).write_text('{"images": [["a.jpg", "large"]]}')
    with pytest.raises(CocosegError, match=r"training_images\.json: damaged .*; delete it to do without it"):
        read_training_images(str(tmp_path / "model.pth"))
