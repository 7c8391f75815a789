"""Images with an EXIF rotation: the reading that annotations belong to, from annotation file to data set."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg import create_segmentation_masks
from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.images.exif import Reading, Rotation, choose_readings, is_upright_size, upright_by
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
    Outlines may be `stretched` to the listed size, and the image `blank`.
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
        if image.get("blank"):
            PIL.Image.new("L", stored).save(root / name, exif=exif)
        left, top, right, bottom = box
        if image.get(
            "stretched"
        ):  # as a tool does that multiplies shares of the upright image by the stored size
            left, right = (x * width / upright[0] for x in (left, right))
            top, bottom = (y * height / upright[1] for y in (top, bottom))
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


def uprights(root: Path) -> list[bool]:
    """Prepare, and return for each image whether it is read upright."""
    prepare(config_of(root))
    pairs = json.loads((root / "prepared" / "index.json").read_bytes())["pairs"]
    return ["orientation" in pair for pair in pairs]


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
    assert (index["exif"], index["pairs"][0]["orientation"]) == ("apply", orientation)


@pytest.mark.parametrize("orientation", STORED)
def test_masks_have_the_pixels_of_the_files_as_stored(tmp_path: Path, orientation: int) -> None:
    """The mask lies on the object where both files are read without EXIF."""
    write_set(tmp_path, [{"orientation": orientation}])
    (record,) = create_segmentation_masks(tmp_path, tmp_path / "c.json", tmp_path / "out", workers=1)
    assert (record.orientation, record.upright) == (orientation, True)
    mask, image = (
        np.asarray(PIL.Image.open(path)) for path in (tmp_path / "out" / record.mask, tmp_path / "1.png")
    )
    np.testing.assert_array_equal(mask == 2, image > 0)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_stored_size_keeps_it_as_stored(tmp_path: Path, orientation: int, ending: str, warnings) -> None:
    write_set(tmp_path, [{"orientation": orientation, "drawn": "stored", "listed": "stored"}], ending)
    assert agreement(tmp_path) == [1]
    (line,) = warnings()
    assert (
        "1 image: EXIF rotation not applied, because outlines match the edges in the images best this way"
        in line
    )
    assert line.endswith(f"data.exif=apply turns (1.{ending})")
    assert json.loads((tmp_path / "prepared" / "index.json").read_bytes())["exif"] == "ignore"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_edges_tell_against_the_stored_size(tmp_path: Path, orientation: int, warnings) -> None:
    """Some tools list the stored size, though they show images upright."""
    write_set(tmp_path, [{"orientation": orientation, "listed": "stored"}, {"orientation": 3}])
    assert agreement(tmp_path) == [1, 1]
    (line,) = warnings()
    assert "2 images: turned by EXIF rotation, because outlines match the edges" in line
    assert line.endswith("data.exif=ignore does not turn (1.png, 2.png)")


@pytest.mark.parametrize("settings", [{}, {"exif": "apply"}])
def test_outlines_in_shares_of_the_stored_size(tmp_path: Path, settings: dict[str, str], warnings) -> None:
    """Label Studio multiplies shares of the upright image by width and height of the stored one."""
    write_set(tmp_path, [{"orientation": 6, "listed": "stored", "stretched": True, "box": HIGH}])
    assert agreement(tmp_path, **settings) == [1]
    told = [line for line in warnings() if "outlines scaled from the stored width and height" in line]
    assert len(told) == (not settings)


def test_the_stored_size_is_believed_where_nothing_else_tells(tmp_path: Path, warnings) -> None:
    write_set(tmp_path, [{"orientation": 6, "listed": "stored", "blank": True}])
    assert uprights(tmp_path) == [False]
    assert "because the annotation file gives width and height as stored" in warnings()[0]


def test_runs_belong_to_the_reading_of_their_size(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": 6, "listed": "stored"}, {"orientation": 8, "listed": "stored"}])
    content = json.loads((tmp_path / "c.json").read_text())
    for annotation in content["annotations"]:
        columns = draw(LOW).T.ravel() > 0
        changes = np.flatnonzero(np.diff(columns, prepend=False, append=False))
        counts = np.diff(changes, prepend=0, append=columns.size).tolist()
        annotation["segmentation"] = {"size": list(SIZE[::-1]), "counts": counts}
    write_coco(tmp_path / "c.json", **content)
    assert agreement(tmp_path) == [1, 1]


# --- sizes that don't tell


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_images_are_turned_unless_edges_tell_otherwise(tmp_path: Path, orientation: int, warnings) -> None:
    write_set(tmp_path, [{"orientation": orientation}])
    assert agreement(tmp_path) == [1]
    assert "1 image: turned by EXIF rotation, because outlines match the edges" in warnings()[0]
    write_set(tmp_path / "b", [{"orientation": orientation, "blank": True}])
    assert uprights(tmp_path / "b") == [True]
    assert "1 image: turned by EXIF rotation, because no evidence was found" in warnings()[1]


@pytest.mark.parametrize("orientation", STORED)
def test_edges_tell_that_images_are_not_turned(tmp_path: Path, orientation: int, warnings) -> None:
    write_set(tmp_path, [{"orientation": orientation, "drawn": "stored", "size": (50, 50)}])
    assert agreement(tmp_path) == [1]
    assert "1 image: EXIF rotation not applied, because outlines match the edges" in warnings()[0]


def test_square_images_follow_the_others(tmp_path: Path, warnings) -> None:
    square = {"orientation": 6, "size": (50, 50), "blank": True}
    write_set(tmp_path, [{"orientation": 8}, square])
    assert uprights(tmp_path) == [True, True]
    write_set(tmp_path / "b", [{"orientation": 8, "drawn": "stored", "listed": "stored"}, square])
    assert uprights(tmp_path / "b") == [False, False]
    assert sum("because the other images of the file show it" in line for line in warnings()) == 2


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


def test_the_preview_shows_images_as_they_are_read(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": 6}])
    prepare(config_of(tmp_path))
    turned = np.asarray(PIL.Image.open(tmp_path / "prepared" / "preview.png"))
    write_set(tmp_path / "b", [{"orientation": 1}])
    prepare(config_of(tmp_path / "b"))
    np.testing.assert_array_equal(
        turned, np.asarray(PIL.Image.open(tmp_path / "b" / "prepared" / "preview.png"))
    )


def test_many_images_in_several_processes(tmp_path: Path) -> None:
    write_set(tmp_path, [{"orientation": number % 8 + 1} for number in range(40)])
    records = create_segmentation_masks(tmp_path, tmp_path / "c.json", tmp_path / "out", workers=2)
    assert [record.image for record in records] == [f"{number}.png" for number in range(1, 41)]
    assert [record.upright for record in records] == [number % 8 > 0 for number in range(40)]


# --- decisions


def test_sizes_that_tell() -> None:
    stored, upright = (64, 48), (48, 64)
    assert is_upright_size(upright, stored, 6) is True
    assert is_upright_size(stored, stored, 6) is False
    for listed, size, orientation in ((stored, stored, 3), ((50, 50), (50, 50), 6), ((1, 2), stored, 6)):
        assert is_upright_size(listed, size, orientation) is None


def test_most_images_with_a_telling_size_decide_for_the_others() -> None:
    rotations = [Rotation(True)] * 2 + [Rotation(False), Rotation(None)]
    readings = [choice.reading for choice in choose_readings(rotations)]
    assert readings == [Reading.UPRIGHT, Reading.UPRIGHT, Reading.STORED, Reading.UPRIGHT]


@pytest.mark.parametrize(
    ("differences", "found"),
    [
        ([0.5], Reading.UPRIGHT),
        ([-0.5], Reading.STORED),
        ([-0.3], Reading.UPRIGHT),  # too little: as without evidence
        ([-0.3] * 4, Reading.STORED),
        ([-0.5, 0.5], Reading.UPRIGHT),
        ([0.9, 0.9, -math.inf], Reading.STORED),  # one image can't be upright
    ],
)
def test_edges_must_tell_clearly(differences: list[float], found: Reading) -> None:
    rotations = [Rotation(None, {Reading.UPRIGHT: d, Reading.STORED: 0.0}) for d in differences]
    assert {choice.reading for choice in choose_readings(rotations)} == {found}


def test_apply_never_reads_as_stored() -> None:
    edges = {Reading.STORED: 5.0, Reading.UPRIGHT: 0.0, Reading.STRETCHED: 1.0}
    rotations = [Rotation(False, edges), Rotation(None, edges), Rotation(True)]
    choices = choose_readings(rotations, "apply")
    assert [choice.reading for choice in choices] == [Reading.STRETCHED, Reading.UPRIGHT, Reading.UPRIGHT]
    assert [choice.warning for choice in choices] == [None] * 3


def test_readings_of_new_images() -> None:
    assert [upright_by(exif) for exif in (None, "apply", "ignore")] == [True, True, False]
    assert [upright_by(exif, True) for exif in (None, "apply", "ignore")] == [True, True, True]
    assert [upright_by(exif, False) for exif in (None, "apply", "ignore")] == [False, True, False]


def test_edges_of_a_sample_decide_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoseg.preparation.rotated_images.SAMPLE", 2)
    turned = {"orientation": 6, "listed": "stored"}
    write_set(tmp_path, [turned, *[{**turned, "blank": True}] * 3, turned])
    assert uprights(tmp_path) == [True] * 5
