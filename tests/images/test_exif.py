"""Images with an EXIF rotation: the reading that annotations belong to, from annotation file to data set."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg import create_segmentation_masks
from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.images.exif import Rotation, choose_readings, find_rotation, upright_by
from cocoseg.preparation.prepare import prepare
from conftest import write_coco

# The stored pixels of an image that each orientation turns to this one.
STORED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
SIZE, LOW = (48, 64), (5, 6, 24, 19)  # width and height of upright images; a box that fits both readings
HIGH = (5, 40, 24, 60)  # one that fits the upright image only


def draw(box: tuple[int, ...], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A white box, its last row and column included, on black: (H, W) uint8."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return pixels


def write_set(root: Path, images: list[dict[str, Any]], ending: str = "png") -> None:
    """Images of a white box each, and outlines of it.

    Each entry has the `orientation`; the reading that is `drawn` on, upright or stored; the `box`, in pixels
    of that; the reading whose width and height are `listed` in the file; and `size`, of the upright image.
    """
    root.mkdir(exist_ok=True)
    listed, annotations = [], []
    for number, image in enumerate(images, start=1):
        orientation, box = image["orientation"], image.get("box", LOW)
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        upright = image.get("size", SIZE)
        to_stored = STORED.get(orientation, np.asarray)
        stored = to_stored(np.zeros(upright[::-1])).shape[::-1]
        is_upright = image.get("drawn", "upright") == "upright"
        pixels = to_stored(draw(box, upright)) if is_upright else draw(box, stored)
        name = f"{number}.{ending}"
        PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(root / name, exif=exif)
        width, height = {"upright": upright, "stored": stored}[image.get("listed", "upright")]
        listed.append({"id": number, "file_name": name, "width": width, "height": height})
        left, top, right, bottom = box
        outline = [left, top, right, top, right, bottom, left, bottom]
        annotations.append({"id": number, "image_id": number, "category_id": 2, "segmentation": [outline]})
    write_coco(root / "c.json", images=listed, annotations=annotations)


def config_of(root: Path, **data: Any) -> Config:
    settings = {
        "images": str(root),
        "annotations": str(root / "c.json"),
        "prepared_dir": str(root / "prepared"),
    }
    return Config(
        data=DataConfig(**settings, subset=SubsetConfig(size=None), **data), prepare=PrepareConfig(workers=1)
    )


def agreement(root: Path, **data: Any) -> list[float]:
    """Prepare, and return the IoU of mask and object for each image, as a training reads them."""
    prepare(config_of(root, **data))
    prepared = SegmentationDataset(root / "prepared" / "subset_train_annotations.json", root)
    found = []
    for index in range(len(prepared)):
        image, mask = prepared.original(index)
        drawn = image[0].numpy() > 127
        found.append(float((drawn & (mask == 1)).sum() / (drawn | (mask == 1)).sum()))
    return found


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "EXIF" in r.getMessage()]


# --- sizes that tell


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_size_of_the_turned_image_turns_it(
    tmp_path: Path, orientation: int, ending: str, warnings
) -> None:
    write_set(tmp_path, [{"orientation": orientation}], ending)
    assert agreement(tmp_path) == [1]
    assert warnings() == []
    index = json.loads((tmp_path / "prepared" / "index.json").read_bytes())
    assert (index["exif"], index["pairs"][0]["upright"]) == ("apply", True)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_stored_size_keeps_it_as_stored(tmp_path: Path, orientation: int, ending: str, warnings) -> None:
    write_set(tmp_path, [{"orientation": orientation, "drawn": "stored", "listed": "stored"}], ending)
    assert agreement(tmp_path) == [1]
    (line,) = warnings()
    assert "1 image: EXIF rotation not applied" in line
    assert f"(1.{ending})" in line
    assert "data.exif=apply" in line
    assert json.loads((tmp_path / "prepared" / "index.json").read_bytes())["exif"] == "ignore"


def test_outlines_beyond_the_stored_image_turn_it(tmp_path: Path, warnings) -> None:
    """Some tools list the stored size, though they show images upright. One outline tells for all."""
    images = [{"orientation": 6, "listed": "stored", "box": box} for box in (LOW, HIGH, LOW)]
    write_set(tmp_path, [*images, {"orientation": 3}])
    assert agreement(tmp_path) == [1, 1, 1, 1]
    assert len(warnings()) == 2
    assert "3 images: turned by EXIF rotation, because outlines fit the turned images alone" in warnings()[0]


# --- sizes that don't tell


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_are_turned_where_nothing_tells(tmp_path: Path, orientation: int, warnings) -> None:
    write_set(tmp_path, [{"orientation": orientation}])
    assert agreement(tmp_path) == [1]
    (line,) = warnings()
    assert "1 image: turned by EXIF rotation, but width and height don't tell" in line
    assert "data.exif=ignore" in line


def test_square_images_follow_the_others(tmp_path: Path, warnings) -> None:
    square = {"size": (50, 50)}
    write_set(tmp_path, [{"orientation": 8}, {"orientation": 6, **square}])
    assert agreement(tmp_path) == [1, 1]
    stored = {"drawn": "stored", "listed": "stored"}
    write_set(tmp_path / "b", [{"orientation": 8, **stored}, {"orientation": 6, **square, **stored}])
    assert agreement(tmp_path / "b") == [1, 1]
    assert sum("don't tell" in line for line in warnings()) == 2


def test_images_without_rotation_are_not_mentioned(tmp_path: Path, warnings) -> None:
    write_set(tmp_path, [{"orientation": 1}, {"orientation": 6}])
    assert agreement(tmp_path) == [1, 1]
    assert warnings() == []


# --- settings


def test_apply_and_ignore(tmp_path: Path, warnings) -> None:
    write_set(tmp_path, [{"orientation": 6, "listed": "stored"}, {"orientation": 3}])
    assert agreement(tmp_path, exif="apply") == [1, 1]
    assert agreement(tmp_path, exif="ignore") == [0, 0]
    assert warnings() == []


def test_ignore_where_the_file_says_that_images_are_turned(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": 6}])
    with pytest.raises(CocosegError, match=r"1\.png: the annotation file says 48x64.*data\.exif=auto"):
        prepare(config_of(tmp_path, exif="ignore"))


def test_masks_alone(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": 6}, {"orientation": 1}])
    records = create_segmentation_masks(tmp_path, tmp_path / "c.json", tmp_path / "out", workers=1)
    assert [(record.image, record.upright) for record in records] == [("1.png", True), ("2.png", None)]
    assert PIL.Image.open(tmp_path / "out" / records[0].mask).size == SIZE


def test_the_preview_shows_images_as_they_are_read(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": 6}])
    prepare(config_of(tmp_path))
    turned = np.asarray(PIL.Image.open(tmp_path / "prepared" / "preview.png"))
    write_set(tmp_path / "b", [{"orientation": 1}])
    prepare(config_of(tmp_path / "b"))
    np.testing.assert_array_equal(
        turned, np.asarray(PIL.Image.open(tmp_path / "b" / "prepared" / "preview.png"))
    )


# --- decisions


def test_evidence() -> None:
    stored, upright = (64, 48), (48, 64)
    assert find_rotation(stored, 3, stored, (10, 10)) == (None, None)
    assert find_rotation((50, 50), 6, (50, 50), (10, 10)) == (None, None)
    assert find_rotation(stored, 6, upright, (10, 10)) == (True, None)
    assert find_rotation(stored, 6, stored, (10, 49)) == (False, None)  # a pixel beyond is rounding
    assert find_rotation(stored, 6, stored, (10, 49.5)) == (False, True)
    assert find_rotation(stored, 6, stored, (60, 10)) == (False, False)
    assert find_rotation(stored, 6, stored, (60, 60)) == (False, None)


def test_contradicting_outlines_leave_the_stored_size_in_force() -> None:
    rotations = [Rotation(False, True), Rotation(False, False), Rotation(None, None)]
    assert choose_readings(rotations) == [False, False, False]


def test_most_images_with_a_telling_size_decide_for_the_others() -> None:
    assert choose_readings([Rotation(True, None)] * 2 + [Rotation(False, None), Rotation(None, None)]) == [
        True,
        True,
        False,
        True,
    ]


def test_readings_of_new_images() -> None:
    assert [upright_by(exif) for exif in (None, "apply", "ignore")] == [True, True, False]
    assert [upright_by(exif, True) for exif in (None, "apply", "ignore")] == [True, True, True]
    assert [upright_by(exif, False) for exif in (None, "apply", "ignore")] == [False, True, False]
