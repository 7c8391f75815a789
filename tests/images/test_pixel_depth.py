"""Images of more than 8 bits, from the survey of their values to the pixels that a network sees."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.data.sampling import open_splits
from cocoseg.images.pixel_depth import bits_in_use, to_bytes
from cocoseg.preparation.prepare import prepare
from conftest import write_coco


def write_set(root: Path, *tops: int) -> Path:
    """A 16-bit image of 30 x 20 for each number, a ramp from 0 to it, and a file that lists them."""
    root.mkdir(exist_ok=True)
    images, annotations = [], []
    for number, top in enumerate(tops, start=1):
        ramp = np.linspace(0, top, 600).astype(np.uint16).reshape(20, 30)
        PIL.Image.fromarray(ramp).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 30, "height": 20})
        outline = [1, 1, 5, 1, 5, 4, 1, 4]
        annotations.append({"id": number, "image_id": number, "category_id": 2, "segmentation": [outline]})
    return write_coco(root / "c.json", images=images, annotations=annotations)


def config_of(root: Path, **data: Any) -> Config:
    settings = {
        "images": str(root),
        "annotations": str(root / "c.json"),
        "prepared_dir": str(root / "prepared"),
    }
    settings |= {"subset": SubsetConfig(size=None), "image_size": [20, 30]} | data
    return Config(data=DataConfig(**settings), prepare=PrepareConfig(workers=1))


def brightest(root: Path, **data: Any) -> list[int]:
    """Prepare, and return the brightest pixel of each image as a training sees it."""
    prepare(config_of(root, **data))
    prepared = SegmentationDataset(root / "prepared" / "subset_train_annotations.json", root)
    return [int(prepared.original(index)[0].max()) for index in range(len(prepared))]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage().strip() for r in caplog.records if "bits" in r.getMessage()]


# --- from values to bytes


def test_bits_in_use() -> None:
    assert bits_in_use(np.array([[0, 1, 2, 3], [4, 255, 256, 4096]], np.uint16)) == 13
    assert bits_in_use(np.zeros((2, 3), np.uint16)) == 1


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(1, [0, 255, 255, 255]), (4, [0, 17, 255, 255]), (8, [0, 1, 200, 255]), (12, [0, 0, 12, 255])],
)
def test_to_bytes(bits: int, expected: list[int]) -> None:
    for dtype in (np.uint16, ">u2", np.int32):
        assert to_bytes(np.array([0, 1, 200, 65535], dtype), bits).tolist() == expected


# --- a set


def test_the_largest_value_of_the_set_scales_all_images(
    tmp_path: Path, warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoseg.preparation.contact_sheet.EXAMPLES", 3)  # all; conftest.py has fewer
    write_set(tmp_path, 1023, 4095, 2047)
    assert brightest(tmp_path) == [63, 255, 127]
    assert json.loads((tmp_path / "prepared" / "index.json").read_bytes())["bits"] == 12
    assert warnings() == []
    with PIL.Image.open(tmp_path / "prepared" / "preview.png") as preview:
        middle = np.asarray(preview)[100:150, 400:600]  # of the second image, without a margin
        assert 80 < middle.min() < middle.max() < 200


def test_images_of_8_bits_beside_them_stay_as_they_are(tmp_path: Path) -> None:
    write_set(tmp_path, 4095, 0)
    PIL.Image.new("L", (30, 20), 77).save(tmp_path / "2.png")
    assert brightest(tmp_path) == [255, 77]


def test_sets_of_8_bits_have_none(tmp_path: Path) -> None:
    write_set(tmp_path, 0)
    PIL.Image.new("L", (30, 20), 77).save(tmp_path / "1.png")
    assert brightest(tmp_path, bits=12) == [77]
    assert json.loads((tmp_path / "prepared" / "index.json").read_bytes())["bits"] is None


def test_bits_can_be_set(tmp_path: Path, warnings) -> None:
    write_set(tmp_path, 4095)
    assert brightest(tmp_path, bits=16) == [15]
    assert warnings() == []
    assert brightest(tmp_path, bits=10) == [255]
    assert warnings() == [
        "warning: images of more than 8 bits: values of up to 12 bits; those beyond data.bits=10 are cut"
    ]


def test_validation_images_are_scaled_as_training_images(tmp_path: Path) -> None:
    write_set(tmp_path, 4095, 4095)
    write_set(tmp_path / "val", 16383)
    config = config_of(
        tmp_path, val_images=str(tmp_path / "val"), val_annotations=str(tmp_path / "val" / "c.json")
    )
    prepare(config)
    for decode_once in (False, True):
        _, val = open_splits(config, decode_once=decode_once)
        image, _ = val.dataset.read([0])
        assert int((image == 255).sum()) > image.numel() // 2  # three quarters are brighter than 4095
    _, val = open_splits(config, decode_once=True, bits=16)  # as if the training images had other bits now
    assert val.dataset.read([0])[0].max() == 16383 >> 8


def test_decoded_arrays_are_made_anew_for_other_bits(tmp_path: Path) -> None:
    write_set(tmp_path, 4095)
    for bits, expected in ((12, 255), (16, 15)):
        prepare(config_of(tmp_path, bits=bits))
        prepared = SegmentationDataset(
            tmp_path / "prepared" / "subset_train_annotations.json", tmp_path, (20, 30)
        )
        prepared.decode_once(1)
        assert prepared.read([0])[0].max() == expected
