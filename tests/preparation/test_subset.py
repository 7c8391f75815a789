from pathlib import Path
from typing import Any

import pytest

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.coco_file import CocoFile
from cocoseg.preparation.subset import choose
from conftest import write_coco

BOTH = {2, 5}


def make(path: Path, ids: list[int]) -> CocoFile:
    """Images with these ids: even ones hold a cat (2), those divisible by 3 a dog (5), others nothing."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in ids]
    annotations = [
        {"id": 100_000 * category + i, "image_id": i, "category_id": category}
        for divisor, category in ((2, 2), (3, 5))
        for i in ids
        if i % divisor == 0
    ]
    return coco.read(write_coco(path, images=images, annotations=annotations))


@pytest.fixture
def file(tmp_path: Path) -> CocoFile:
    return make(tmp_path / "c.json", list(range(1, 301)))


def ids(images: list[coco.Image]) -> list[int]:
    return [image.id for image in images]


def test_nested(file: CocoFile) -> None:
    previous: set[int] = set()
    for size in (1, 2, 10, 50, 120, 200):
        chosen = ids(choose(file, size=size, seed=3, category_ids=BOTH))
        assert len(set(chosen)) == size
        assert previous < set(chosen)
        assert chosen == sorted(chosen)  # in the order of the file
        previous = set(chosen)


def test_seeded(file: CocoFile) -> None:
    choices = [ids(choose(file, size=20, seed=seed, category_ids=BOTH)) for seed in (0, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len({tuple(choice) for choice in choices}) == 3


def test_a_seed_chooses_the_same_images_in_every_version(file: CocoFile) -> None:
    """Otherwise a new version would train on other images than an earlier one."""
    assert ids(choose(file, size=6, seed=0, category_ids=BOTH)) == [3, 52, 62, 177, 248, 273]


def test_independent_of_the_order_of_the_file_and_of_other_images(file: CocoFile, tmp_path: Path) -> None:
    chosen = ids(choose(file, size=20, seed=0, category_ids=BOTH))
    reverse = make(tmp_path / "reverse.json", list(range(300, 0, -1)))
    assert ids(choose(reverse, size=20, seed=0, category_ids=BOTH)) == chosen[::-1]
    fewer = make(tmp_path / "fewer.json", chosen)
    assert ids(choose(fewer, size=10, seed=0, category_ids=BOTH)) == ids(
        choose(file, size=10, seed=0, category_ids=BOTH)
    )


@pytest.mark.parametrize("size", [None, 200, 201, 10**9])
def test_all_that_qualify(file: CocoFile, size: int | None) -> None:
    expected = [i for i in range(1, 301) if i % 2 == 0 or i % 3 == 0]
    assert len(expected) == 200
    assert ids(choose(file, size=size, seed=0, category_ids=BOTH)) == expected


def test_categories(file: CocoFile) -> None:
    assert ids(choose(file, size=None, seed=0, category_ids={5})) == list(range(3, 301, 3))


def test_keep_empty(file: CocoFile) -> None:
    every = choose(file, size=None, seed=0, category_ids={5}, keep_empty=True)
    assert ids(every) == list(range(1, 301))


def test_none_qualifies(tmp_path: Path) -> None:
    file = make(tmp_path / "c.json", [1, 5, 7])
    with pytest.raises(CocosegError, match=r"c\.json: no image .*keep_empty"):
        choose(file, size=None, seed=0, category_ids=BOTH)
    assert len(choose(file, size=2, seed=0, category_ids=BOTH, keep_empty=True)) == 2


# --- images with too little on them


def make_areas(path: Path, *annotations: tuple[int, dict[str, Any]]) -> CocoFile:
    """Images 1 to 5 of 8 x 6 pixels; annotations of cats (2) by the id of their image."""
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(1, 6)]
    found = [
        {"id": n, "image_id": i, "category_id": 2, **more} for n, (i, more) in enumerate(annotations, start=1)
    ]
    return coco.read(write_coco(path, images=images, annotations=found))


def enough(file: CocoFile, min_pixels: int, **more: Any) -> list[int]:
    return ids(choose(file, size=None, seed=0, category_ids={2}, min_pixels=min_pixels, **more))


BOX = [1, 1, 5, 1, 5, 4, 1, 4]  # 4 x 3 pixels


def test_min_pixels_by_the_area_of_the_file(tmp_path: Path) -> None:
    file = make_areas(
        tmp_path / "c.json",
        (1, {"area": 19.5, "segmentation": [BOX]}),
        (2, {"area": 20}),
        (3, {"area": 12}),
        (3, {"area": 8.0}),
        (4, {"area": 0, "segmentation": [BOX, BOX]}),
    )
    assert enough(file, 0) == [1, 2, 3, 4]
    assert enough(file, 1) == [1, 2, 3]
    assert enough(file, 20) == [2, 3]
    with pytest.raises(CocosegError, match=r"c\.json: no image .* at least 21 pixels .*min_pixels"):
        enough(file, 21)


def test_min_pixels_by_the_segmentation_where_the_file_has_no_area(tmp_path: Path) -> None:
    runs = {"size": [6, 8], "counts": [3, 7, 30, 6, 2]}
    file = make_areas(
        tmp_path / "c.json",
        (1, {"segmentation": [BOX]}),
        (2, {"segmentation": [BOX, [0, 0, 2, 0, 0, 1]], "area": None}),
        (3, {"segmentation": runs}),
        (4, {"segmentation": [[1, 1]]}),
        (5, {"segmentation": [BOX], "area": 100}),
    )
    assert enough(file, 1) == [1, 2, 3, 5]
    assert enough(file, 12) == [1, 2, 3, 5]
    assert enough(file, 13) == [2, 3, 5]
    assert enough(file, 14) == [5]


def test_min_pixels_counts_neither_crowds_nor_other_categories(tmp_path: Path) -> None:
    file = make_areas(
        tmp_path / "c.json",
        (1, {"area": 9}),
        (1, {"area": 9, "iscrowd": 1}),
        (2, {"area": 9}),
        (2, {"area": 9, "category_id": 5}),
        (3, {"area": 9}),
        (3, {"area": 9}),
        (4, {"area": 18, "iscrowd": 1}),
    )
    assert enough(file, 0) == [1, 2, 3, 4]
    assert enough(file, 9) == [1, 2, 3]
    assert enough(file, 10) == [3]


def test_min_pixels_and_empty_images(tmp_path: Path) -> None:
    file = make_areas(
        tmp_path / "c.json", (1, {"area": 5}), (2, {"area": 15}), (3, {"area": 15, "category_id": 5})
    )
    assert enough(file, 10) == [2]
    assert enough(file, 10, keep_empty=True) == [2, 3, 4, 5]


def test_min_pixels_of_a_bad_segmentation(tmp_path: Path) -> None:
    file = make_areas(tmp_path / "c.json", (1, {"segmentation": [[1, 1, 5, 1, 5, 1e9]]}))
    with pytest.raises(CocosegError, match=r"c\.json: annotation 1: a coordinate"):
        enough(file, 1)
