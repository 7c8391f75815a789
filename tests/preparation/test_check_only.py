"""Annotations are checked and nothing is written."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg.checks import check
from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepare import check_annotations, prepare
from cocoseg.preparation.report import UNSEEN
from cocoseg.preparation.segmentations import EMPTY
from conftest import run_program, write_coco

BOX = [1, 1, 5, 1, 5, 4, 1, 4]
SOUND = [
    {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [BOX]},
    {"id": 2, "image_id": 1, "category_id": 5, "segmentation": [[6, 0, 8, 0, 8, 5]]},
]


def make_config(root: Path, **changes: Any) -> Config:
    """One image of 8 x 6 pixels, which is not there."""
    file = write_coco(root / "c.json", **{"annotations": SOUND, **changes})
    return Config(
        data=DataConfig(
            images=str(root / "images"),
            annotations=str(file),
            prepared_dir=str(root / "prepared"),
            subset=SubsetConfig(size=None),
        ),
        prepare=PrepareConfig(workers=1, check_only=True),
    )


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder: time of change and content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def warnings(config: Config, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, "cocoseg"):
        check_annotations(config)
    return [r.getMessage().strip() for r in caplog.records if r.levelno >= logging.WARNING]


def annotation(number: int, segmentation: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 2, "segmentation": segmentation, **changes}


# --- nothing wrong


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("encoding", ["palette", "x100"])
def test_nothing_is_written(tmp_path: Path, encoding: str, workers: int) -> None:
    images = [{"id": i, "file_name": f"a/{i}.png", "width": 8, "height": 6} for i in range(1, 40)]
    annotations = [annotation(i, [BOX], image_id=i) for i in range(1, 40)]
    config = make_config(tmp_path, images=images, annotations=annotations)
    config.masks = MasksConfig(encoding=encoding)
    config.prepare.workers = workers
    before = tree(tmp_path)
    check_annotations(config)
    assert tree(tmp_path) == before


def test_what_was_prepared_is_left_alone(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    prepare(config)
    make_config(tmp_path, annotations=SOUND[:1])
    before = tree(tmp_path)
    assert "prepared/masks" in before
    check_annotations(config)
    assert tree(tmp_path) == before


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in (1, 2)]
    config = make_config(tmp_path, images=images)
    config.data.subset.keep_empty = True
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "images" / "1.png")
    with caplog.at_level(logging.INFO, "cocoseg"):
        check_annotations(config)
    said = [record.getMessage().strip() for record in caplog.records]
    assert f"{config.data.annotations}: no errors in the annotations of 2 images" in said
    assert f"1 of them are not in {config.data.images}" in said


def test_validation_file_too(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.data.val_annotations = str(write_coco(tmp_path / "val.json"))
    check_annotations(config)
    write_coco(tmp_path / "val.json", annotations=[annotation(31, [[1, 1, 5, 1, 5, 1e9]])])
    with pytest.raises(CocosegError, match=r"val\.json: annotation 31: "):
        check_annotations(config)
    write_coco(tmp_path / "val.json", categories=[{"id": 2, "name": "cat"}])
    with pytest.raises(CocosegError, match=r"val\.json: other labels .*2 classes against 1"):
        check_annotations(config)


# --- warnings


def test_warnings_about_images_and_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {1: "a.png", 2: "b.png", 3: "B.png", 4: "sub/c.png", 5: "sub/C.PNG"}
    images = [{"id": i, "file_name": name, "width": 8, "height": 6} for i, name in names.items()]
    config = make_config(tmp_path, images=images, annotations=SOUND[:1])
    assert warnings(config, caplog) == [
        "warning: 4 images: no annotation (2, 3, 4, 5)",
        "warning: 2 images: the file name of another one in different case (B.png, sub/C.PNG)",
        f"warning: 1 class: {UNSEEN} (dog)",
    ]


# --- errors


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 99}, "annotation 77 is of image 99, which is not listed"),
        ({"category_id": 99}, "annotation 77 is of category 99, which is not listed"),
        ({"segmentation": [[1, 1, 5, 1, 5, -math.inf]]}, "annotation 77 has NaN or infinity in its segm"),
        ({"segmentation": [[1, 1, 5, 1, 5, 1e9]]}, "annotation 77: a coordinate lies beyond 100000 pixels"),
        ({"area": math.nan}, "annotation 77 has NaN or infinity in its area"),
        ({"bbox": [0, 0, math.inf, 1]}, "annotation 77 has NaN or infinity in its bbox"),
        ({"id": 1}, "the id 1 occurs twice in 'annotations'"),
    ],
    ids=str,
)
def test_bad_annotations(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    config = make_config(tmp_path, annotations=[*SOUND, {**annotation(77, [BOX]), **changes}])
    with pytest.raises(CocosegError, match=rf"c\.json: {reason}"):
        check_annotations(config)


def test_several_errors_at_once(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(1, 6)]
    annotations = [annotation(70 + i, [[1, 1, 5, 1, 5, 1e6]], image_id=i) for i in range(1, 6)]
    config = make_config(tmp_path, images=images, annotations=annotations)
    with pytest.raises(CocosegError) as caught:
        check_annotations(config)
    assert [f"annotation {number}:" in str(caught.value) for number in range(71, 76)] == 3 * [True] + 2 * [
        False
    ]
    assert str(caught.value).endswith("(and 2 more)")


# --- on the command line


def overrides(root: Path) -> tuple[str, ...]:
    return (
        "data=custom",
        f"data.images={root / 'nowhere'}",
        f"data.annotations={root / 'c.json'}",
        "prepare.workers=1",
        "prepare.check_only=true",
    )


def test_command_line(tmp_path: Path) -> None:
    write_coco(tmp_path / "c.json", annotations=[*SOUND, annotation(77, [[1, 1]])])
    done = run_program("prepare", *overrides(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"warning: 1 annotation: {EMPTY} (77)" in done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"c.json"}

    content = json.loads((tmp_path / "c.json").read_bytes())
    content["annotations"][2]["segmentation"] = [[1, 1, 5, 1, 5, 1e9]]
    write_coco(tmp_path / "c.json", **content)
    done = run_program("prepare", *overrides(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "c.json: annotation 77: a coordinate lies beyond" in line
    assert {path.name for path in tmp_path.iterdir()} == {"c.json"}


def test_training_refuses(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    check(config, may_download=True)
    with pytest.raises(CocosegError, match=r"prepare\.check_only is for prepare\.py"):
        check(config)
