"""Classes without a pixel, and sets that show none at all."""

import logging
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.errors import CocosegError
from cocoseg.preparation.faults import BOXES, CROWDS, HIDDEN, NOT_ANNOTATED
from cocoseg.preparation.prepare import prepare
from conftest import write_coco

SIZE = {"width": 8, "height": 6}
POLYGON = {"segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
BRUSH = {"segmentation": {"size": [6, 8], "counts": [7, 4, 37]}, "iscrowd": 1}
CROWD = {**POLYGON, "iscrowd": 1}
BOX = {"segmentation": []}
NOTHING = {"segmentation": {"size": [6, 8], "counts": [48]}}
OUTSIDE = {"segmentation": [[20, 20, 30, 20, 30, 30]]}
CLASSES = {1: "cat", 2: "dog", 3: "eel"}
Annotations = list[tuple[int, dict[str, Any]]]


def make(path: Path, annotations: Annotations) -> Path:
    """A file of one image, with annotations of these categories."""
    return write_coco(
        path,
        images=[{"id": 1, "file_name": "a.png", **SIZE}],
        annotations=[
            {"id": n, "image_id": 1, "category_id": category, **more}
            for n, (category, more) in enumerate(annotations, start=1)
        ],
        categories=[{"id": identity, "name": name} for identity, name in CLASSES.items()],
    )


def make_config(root: Path, *annotations: tuple[int, dict[str, Any]], **masks: str) -> Config:
    (root / "images").mkdir()
    PIL.Image.new("RGB", tuple(SIZE.values())).save(root / "images/a.png")
    return Config(
        data=DataConfig(
            images=str(root / "images"),
            annotations=str(make(root / "train.json", list(annotations))),
            prepared_dir=str(root / "prepared"),
            subset=SubsetConfig(size=None, keep_empty=True),
        ),
        masks=MasksConfig(**masks),
        prepare=PrepareConfig(workers=1),
    )


@pytest.mark.parametrize(
    ("dogs", "crowd", "reason"),
    [
        ([], "ignore", NOT_ANNOTATED),
        ([BOX, NOTHING], "ignore", BOXES),
        ([BRUSH, BRUSH], "ignore", CROWDS),
        ([BRUSH, CROWD, BOX], "ignore", CROWDS),
        ([BRUSH], "skip", CROWDS),
        ([{**BOX, "iscrowd": 1}], "skip", BOXES),
        ([OUTSIDE], "ignore", HIDDEN),
        ([OUTSIDE, BRUSH], "ignore", HIDDEN),
        ([CROWD], "draw", HIDDEN),  # the eel lies on top
    ],
)
def test_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture, dogs: list, crowd: str, reason: str):
    """Every run shows the reason, whether the set was prepared before or not."""
    scene = [(1, {"segmentation": [[0, 5, 7, 5, 7, 5]]}), *((2, dog) for dog in dogs), (3, POLYGON)]
    config = make_config(tmp_path, *scene, crowd=crowd)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            prepare(config)
        assert f"  warning: 1 class: not a single pixel: {reason} (dog)" in caplog.messages


def test_a_reason_names_all_classes_that_have_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A project of polygons and brush masks has several such classes."""
    prepare(make_config(tmp_path, (2, BRUSH), (1, BRUSH), (3, POLYGON)))
    assert f"  warning: 2 classes: not a single pixel: {CROWDS} (cat, dog)" in caplog.messages


NONE_OF_THEM = [(1, BRUSH), (2, BOX)]


def test_nothing_to_learn(tmp_path: Path) -> None:
    """The set is refused, also where an evaluation has prepared it; earlier files stay."""
    config = make_config(tmp_path, (1, POLYGON))
    prepare(config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*g")}
    make(tmp_path / "train.json", NONE_OF_THEM)
    words = r"train\.json: nothing to learn: 1 class: .*crowd=draw.* \(cat\); 1 class: .*boxes.* \(dog\); 1"
    for _ in range(2):
        with pytest.raises(CocosegError, match=words):
            prepare(config)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*g")} == before
    prepare(config, for_training=False)
    assert (tmp_path / "prepared/masks/a_mask_cats_none.png").exists()
    with pytest.raises(CocosegError, match=words):
        prepare(config)


def test_nothing_to_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A validation file may show false alarms only."""
    config = make_config(tmp_path, *((identity, POLYGON) for identity in CLASSES), overlap="max")
    config.data.val_annotations = str(make(tmp_path / "val.json", [(1, BRUSH)]))
    prepare(config)
    assert f"  warning: 1 class: not a single pixel: {CROWDS} (cat)" in caplog.messages
