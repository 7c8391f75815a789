"""Annotation files of other formats: errors that name the format."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file
from conftest import write_coco

SHARES = [[0.1, 0.25, 0.5, 0.25, 0.5, 0.75]]
WHOLE = [[0, 0, 1, 0, 1, 1, 0, 1]]
PIXELS = [[1, 1, 5, 1, 5, 4]]
RUNS = {"size": [6, 8], "counts": [8, 4, 36]}


def make(path: Path, segmentations: list[Any], width: int = 8, height: int = 6) -> coco_file.CocoFile:
    """A file of an image, with these segmentations."""
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    annotations = [
        {"id": n, "image_id": 1, "category_id": 2, "segmentation": found}
        for n, found in enumerate(segmentations)
    ]
    return coco_file.read(write_coco(path, images=[image], annotations=annotations))


@pytest.mark.parametrize(
    "segmentations",
    [[SHARES], [[], SHARES, None, SHARES[0]], [RUNS, SHARES], [[*SHARES, *WHOLE]], [WHOLE, SHARES]],
    ids=str,
)
def test_shares(tmp_path: Path, segmentations: list[Any]) -> None:
    with pytest.raises(CocosegError, match=r"c\.json: all coordinates lie between 0 and 1, .*must be pixels"):
        make(tmp_path / "c.json", segmentations).require_pixels()


@pytest.mark.parametrize(
    "segmentations",
    [[], [[]], [RUNS], [PIXELS], [WHOLE], [SHARES, PIXELS], [PIXELS, SHARES], [[*SHARES, *PIXELS]], ["bad"]],
    ids=str,
)
def test_pixels(tmp_path: Path, segmentations: list[Any]) -> None:
    make(tmp_path / "c.json", segmentations).require_pixels()


def test_an_image_of_a_pixel(tmp_path: Path) -> None:
    make(tmp_path / "c.json", [SHARES], width=1, height=1).require_pixels()


# --- other formats

IMAGES = [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}]
CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1, "supercategory": "animal"}]
RESULT = {"image_id": 1, "category_id": 1, "segmentation": RUNS, "score": 0.9}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": IMAGES, "annotations": [{"id": 1, "image_id": 1, "caption": "A cat."}]}, "captions"),
        ([RESULT], "a COCO results file"),
        ({"version": "5", "flags": {}, "shapes": [], "imagePath": "a.jpg", "imageData": None}, "labelme"),
        ([{"id": 1, "annotations": [], "data": {"image": "a.jpg"}}], "Label Studio's own"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "VGG"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
        ({"info": {}, "categories": {}, "items": []}, "Datumaro"),
        ([], r"not a COCO instances file \(Expected `object`, got `array`\)"),
        ({"a": 1}, r"not a COCO instances file \(.*`images`"),
        ({"images": IMAGES, "categories": CATEGORIES}, r"not a COCO instances file \(.*`annotations`"),
        ({"images": IMAGES, "annotations": {"a": 1}, "categories": CATEGORIES}, "not a COCO instances file"),
        ({"images": IMAGES, "annotations": [7], "categories": CATEGORIES}, "not a COCO instances file"),
    ],
)
def test_other_format(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CocosegError, match=rf"c\.json: {words}" if "not a" in words else words):
        coco_file.read(tmp_path / "c.json")


def test_images_of_lvis(tmp_path: Path) -> None:
    """Images of LVIS have no file_name, only an address. The subset that is written has both."""
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/train2017/0001.jpg", "width": 8, "height": 6},
        {"id": 2, "coco_url": "http://x/a%20b.jpg?size=1", "width": 8, "height": 6},
        {"id": 3, "coco_url": "http://x/3.jpg", "file_name": "c.jpg", "width": 8, "height": 6},
    ]
    file = coco_file.read(write_coco(tmp_path / "c.json", images=images))
    names = ["0001.jpg", "a b.jpg", "c.jpg"]
    assert [image.file_name for image in file.images] == names
    file.write_subset(file.images, tmp_path / "subset.json")
    written = json.loads((tmp_path / "subset.json").read_bytes())["images"]
    assert written == [{**image, "file_name": name} for image, name in zip(images, names, strict=True)]


@pytest.mark.parametrize("url", ["http://x/..", "http://x/", "http://x/%2e%2e%2fa.jpg", "http://x/a%0a.jpg"])
def test_addresses_that_name_no_image(tmp_path: Path, url: str) -> None:
    images = [{"id": 1, "coco_url": url, "width": 8, "height": 6}]
    with pytest.raises(CocosegError, match=r"c\.json: image 1 has the file_name"):
        coco_file.read(write_coco(tmp_path / "c.json", images=images))
