"""Files whose coordinates are shares of the image: by hand."""

from pathlib import Path
from typing import Any

import pytest

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file
from cocoseg.preparation.normalized import refuse_normalized
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
    [[SHARES], [[], SHARES, None, SHARES[0]], [RUNS, SHARES], [[*SHARES, *WHOLE]]],
    ids=str,
)
def test_shares(tmp_path: Path, segmentations: list[Any]) -> None:
    with pytest.raises(CocosegError, match=r"c\.json: all coordinates lie between 0 and 1, .*must be pixels"):
        refuse_normalized(make(tmp_path / "c.json", segmentations))


@pytest.mark.parametrize(
    "segmentations",
    [[], [[]], [RUNS], [PIXELS], [WHOLE], [SHARES, PIXELS], [PIXELS, SHARES], [[*SHARES, *PIXELS]], ["bad"]],
    ids=str,
)
def test_pixels(tmp_path: Path, segmentations: list[Any]) -> None:
    refuse_normalized(make(tmp_path / "c.json", segmentations))


def test_an_image_of_a_pixel(tmp_path: Path) -> None:
    refuse_normalized(make(tmp_path / "c.json", [SHARES], width=1, height=1))
