from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import Category
from cocoseg.preparation.contact_sheet import (
    COLUMNS,
    EXAMPLES,  # read before conftest.py makes it smaller
    GAP,
    HEIGHT,
    LINE,
    LINES,
    WIDTH,
    write_contact_sheet,
)
from cocoseg.preparation.prepared_folder import Pair

LABELS = LabelMap.from_categories([Category(2, "cat"), Category(5, "dog"), Category(9, "eel")])
IGNORED = 255


@pytest.fixture(autouse=True)
def whole_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoseg.preparation.contact_sheet.EXAMPLES", EXAMPLES)


def make_pairs(
    folder: Path, count: int, names: tuple[str, ...] = ("cat", "dog"), size: tuple[int, int] = (40, 30)
) -> tuple[list[Pair], MaskEncoding]:
    """Images of noise, and masks with columns of each class and a last row of ignored pixels."""
    encoding = MaskEncoding("palette", LabelMap.from_categories(map(Category, range(1, 400), names)))
    random, pairs = np.random.default_rng(0), []
    for number in range(count):
        pair = Pair(f"{number}.png", f"{number}_mask.png")
        noise = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        PIL.Image.fromarray(noise).save(folder / pair.image)
        pixels = np.tile(np.arange(size[0]) % (len(names) + 1), (size[1], 1)).astype(np.uint8)
        pixels[-1] = IGNORED
        encoding.write(pixels, folder / pair.mask)
        pairs.append(pair)
    return pairs, encoding


def sheet(folder: Path, pairs: list[Pair], encoding: MaskEncoding) -> np.ndarray:
    write_contact_sheet(folder, folder, pairs, encoding)
    with PIL.Image.open(folder / "preview.png") as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def tile(sheet: np.ndarray, number: int) -> np.ndarray:
    """The image of one pair with its mask, without the text below it."""
    top = GAP + number // COLUMNS * (HEIGHT + LINES * LINE + GAP)
    left = GAP + number % COLUMNS * (WIDTH + GAP)
    return sheet[top : top + HEIGHT, left : left + WIDTH]


def text_of(sheet: np.ndarray, number: int) -> np.ndarray:
    top = GAP + number // COLUMNS * (HEIGHT + LINES * LINE + GAP) + HEIGHT
    left = GAP + number % COLUMNS * (WIDTH + GAP)
    return sheet[top : top + LINES * LINE, left : left + WIDTH]


def is_blank(pixels: np.ndarray) -> bool:
    return bool((pixels == 255).all())


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (5, 4, 2)])
def test_size(tmp_path: Path, count: int, columns: int, rows: int) -> None:
    found = sheet(tmp_path, *make_pairs(tmp_path, count))
    height, width = rows * (240 + 3 * 18 + 8) + 8, columns * (320 + 8) + 8
    assert found.shape == (height, width, 3)
    for number in range(columns * rows):
        assert is_blank(tile(found, number)) == (number >= count)
        assert is_blank(text_of(found, number)) == (number >= count)


def test_sixteen_from_the_first_pair_to_the_last(tmp_path: Path) -> None:
    pairs, encoding = make_pairs(tmp_path, 20)
    found = sheet(tmp_path, pairs, encoding)
    assert found.shape == sheet(tmp_path, pairs[:16], encoding).shape
    np.testing.assert_array_equal(tile(found, 15), tile(sheet(tmp_path, pairs[19:], encoding), 0))


def test_images_are_those_of_the_pairs(tmp_path: Path) -> None:
    encoding = MaskEncoding("x100", LABELS)
    pairs = []
    for value in (0, 1, 2):
        pairs.append(Pair(f"{value}.png", f"{value}_mask.png"))
        PIL.Image.new("RGB", (80, 60), (90, 100, 110)).save(tmp_path / pairs[-1].image)
        encoding.write(np.full((60, 80), value, np.uint8), tmp_path / pairs[-1].mask)
    found = sheet(tmp_path, pairs, encoding)
    for number, color in enumerate(label.color for label in LABELS.classes[:3]):
        mixed = tuple((i + c) // 2 for i, c in zip((90, 100, 110), color, strict=True))
        expected = mixed if number else (90, 100, 110)
        assert {tuple(pixel) for pixel in tile(found, number).reshape(-1, 3).tolist()} == {expected}
        backs = (text_of(found, number) == color).all(axis=2).sum()
        assert (backs > 100) == (number > 0)  # the name of the class, on its color


@pytest.mark.parametrize("size", [(1500, 1), (1, 1500), (1, 1), (641, 479)], ids=str)
def test_any_shape(tmp_path: Path, size: tuple[int, int]) -> None:
    pairs, encoding = make_pairs(tmp_path, 2, size=size)
    found = sheet(tmp_path, pairs, encoding)
    assert found.shape == (HEIGHT + LINES * LINE + 2 * GAP, 2 * WIDTH + 3 * GAP, 3)
    shown = (tile(found, 0) != 255).any(axis=2)
    scale = min(WIDTH / size[0], HEIGHT / size[1])
    for axis in (0, 1):
        extent = np.flatnonzero(shown.any(axis=axis))
        assert abs(extent[-1] + 1 - extent[0] - max(1, size[axis] * scale)) <= 2


@pytest.mark.parametrize(
    "names",
    [
        tuple(f"class number {i}" for i in range(40)),
        ("猫", "狗", "自行车" * 40),
        ("x" * 5000, "y"),
        ("two\nlines", "y"),
        ("tab\tand\rreturn", "\x00 nul", "", " "),
    ],
    ids=["many", "Chinese", "long", "two lines", "control"],
)
def test_any_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    pairs, encoding = make_pairs(tmp_path, 2, names, size=(82, 20))
    found = sheet(tmp_path, pairs, encoding)
    assert not is_blank(text_of(found, 0))
    between = found[:, GAP + WIDTH : GAP + WIDTH + GAP]
    assert is_blank(between)  # nothing runs into the next tile
    assert is_blank(found[-GAP:])


def test_largest_class_first(tmp_path: Path) -> None:
    encoding = MaskEncoding("palette", LABELS)
    mask = np.zeros((30, 40), np.uint8)
    mask[:, :5], mask[:, 10:30], mask[:3, 35:] = 1, 3, 2
    PIL.Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    encoding.write(mask, tmp_path / "mask.png")
    names = text_of(sheet(tmp_path, [Pair("a.png", "mask.png")], encoding), 0)
    lefts = [
        int(np.flatnonzero((names == label.color).all(axis=2).any(axis=0))[0]) for label in LABELS.classes[1:]
    ]
    assert lefts[2] < lefts[0] < lefts[1]  # eel, cat, dog
