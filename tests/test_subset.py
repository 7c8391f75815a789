from pathlib import Path

import pytest

from cocoseg import coco
from cocoseg.coco import CocoFile
from cocoseg.errors import CocosegError
from cocoseg.subset import choose
from conftest import write_coco

BOTH = {2: 1, 5: 2}  # category id -> class index


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
        chosen = ids(choose(file, size=size, seed=3, class_of=BOTH))
        assert len(set(chosen)) == size
        assert previous < set(chosen)
        assert chosen == sorted(chosen)  # in the order of the file
        previous = set(chosen)


def test_seeded(file: CocoFile) -> None:
    choices = [ids(choose(file, size=20, seed=seed, class_of=BOTH)) for seed in (0, 0, 1, 2)]
    assert choices[0] == choices[1]
    assert len({tuple(choice) for choice in choices}) == 3


def test_spread_over_the_file(file: CocoFile) -> None:
    chosen = ids(choose(file, size=100, seed=0, class_of=BOTH, keep_empty=True))
    assert 25 < sum(i <= 150 for i in chosen) < 75


def test_independent_of_the_order_of_the_file_and_of_other_images(file: CocoFile, tmp_path: Path) -> None:
    chosen = ids(choose(file, size=20, seed=0, class_of=BOTH))
    reverse = make(tmp_path / "reverse.json", list(range(300, 0, -1)))
    assert ids(choose(reverse, size=20, seed=0, class_of=BOTH)) == chosen[::-1]
    fewer = make(tmp_path / "fewer.json", chosen)
    assert ids(choose(fewer, size=10, seed=0, class_of=BOTH)) == ids(
        choose(file, size=10, seed=0, class_of=BOTH)
    )


@pytest.mark.parametrize("size", [None, 200, 201, 10**9])
def test_all_that_qualify(file: CocoFile, size: int | None) -> None:
    expected = [i for i in range(1, 301) if i % 2 == 0 or i % 3 == 0]
    assert len(expected) == 200
    assert ids(choose(file, size=size, seed=0, class_of=BOTH)) == expected


@pytest.mark.parametrize("size", [0, -1])
def test_size_below_one(file: CocoFile, size: int) -> None:
    with pytest.raises(CocosegError, match=r"data\.subset\.size is"):
        choose(file, size=size, seed=0, class_of=BOTH)


def test_categories(file: CocoFile) -> None:
    assert ids(choose(file, size=None, seed=0, class_of={5: 1})) == list(range(3, 301, 3))


def test_keep_empty(file: CocoFile) -> None:
    every = choose(file, size=None, seed=0, class_of={5: 1}, keep_empty=True)
    assert ids(every) == list(range(1, 301))


def test_none_qualifies(tmp_path: Path) -> None:
    file = make(tmp_path / "c.json", [1, 5, 7])
    with pytest.raises(CocosegError, match=r"c\.json: no image .*keep_empty"):
        choose(file, size=None, seed=0, class_of=BOTH)
    assert len(choose(file, size=2, seed=0, class_of=BOTH, keep_empty=True)) == 2
