from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.io import ImageReadMode, decode_image

from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import Category

ENCODINGS = ("palette", "uint16", "x100")


def encode(encoding: str, ids: Iterable[int]) -> MaskEncoding:
    return MaskEncoding(encoding, LabelMap.from_categories(Category(i, f"c{i}") for i in ids))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@settings(max_examples=30)
@given(st.sampled_from(ENCODINGS), st.sets(st.integers(0, 70_000), min_size=1, max_size=40), st.randoms())
def test_round_trip(folder: Path, encoding: str, ids: set[int], random: object) -> None:
    masks = encode(encoding, ids)
    known = [*range(len(ids) + 1), 255]
    mask = np.array([[random.choice(known) for _ in range(9)] for _ in range(7)], dtype=np.uint8)
    masks.write(mask, folder / "mask.png")
    read = masks.read(folder / "mask.png")
    np.testing.assert_array_equal(read, mask)
    assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("encoding", "ids", "kind", "pixels", "ignored"),
    [
        ("palette", [3, 18, 90], "category_id", [0, 3, 18, 90], 255),
        ("palette", [1, 254], "category_id", [0, 1, 254], 255),
        ("palette", [1, 255], "class_index", [0, 1, 2], 255),
        ("palette", [0, 7], "class_index", [0, 1, 2], 255),
        ("palette", [-1, 7], "class_index", [0, 1, 2], 255),
        ("palette", [3000, 4000], "class_index", [0, 1, 2], 255),
        ("uint16", [3, 18, 90], "category_id", [0, 3, 18, 90], 65535),
        ("uint16", [3000, 65534], "category_id", [0, 3000, 65534], 65535),
        ("uint16", [3, 65535], "class_index", [0, 1, 2], 65535),
        ("uint16", [0, 7], "class_index", [0, 1, 2], 65535),
        ("x100", [3, 18, 90], "category_id", [0, 300, 1800, 9000], 65535),
        ("x100", [1, 654], "category_id", [0, 100, 65400], 65535),
        ("x100", [1, 655], "class_index", [0, 100, 200], 65535),
        ("x100", [0, 7], "class_index", [0, 100, 200], 65535),
        ("x100", [10**20], "class_index", [0, 100], 65535),
    ],
)
def test_pixels(
    tmp_path: Path, encoding: str, ids: list[int], kind: str, pixels: list[int], ignored: int
) -> None:
    """Pillow and torchvision, which decodes PNG on its own, must see the same numbers in the file."""
    masks = encode(encoding, ids)
    assert masks.pixel == kind
    assert masks.ignore_value == ignored
    path = tmp_path / "mask.png"
    masks.write(np.array([[*range(len(ids) + 1), 255]] * 2, dtype=np.uint8), path)

    expected = [[*pixels, ignored]] * 2
    assert np.asarray(PIL.Image.open(path)).tolist() == expected
    decoded = decode_image(str(path), mode=ImageReadMode.UNCHANGED)
    assert decoded.dtype == (torch.uint8 if encoding == "palette" else torch.uint16)
    assert decoded.to(torch.int32).tolist() == [expected]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_parts_of_other_arrays(tmp_path: Path, encoding: str) -> None:
    """Masks need not be contiguous in memory."""
    masks = encode(encoding, [3, 18])
    whole = np.random.default_rng(0).choice([0, 1, 2, 255], size=(40, 60)).astype(np.uint8)
    for mask in (whole[3:20, 5:50], whole.T, whole[::-1, ::2], np.asfortranarray(whole)):
        masks.write(mask, tmp_path / "mask.png")
        np.testing.assert_array_equal(masks.read(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize("used", [[0], [0, 1, 255]])
def test_palette_has_256_entries(tmp_path: Path, used: list[int]) -> None:
    """It has them whatever the mask shows, because with fewer some readers expect pixels of 4 bits."""
    encode("palette", [3]).write(np.array([used], dtype=np.uint8), tmp_path / "mask.png")
    content = (tmp_path / "mask.png").read_bytes()
    place = content.index(b"PLTE")
    assert int.from_bytes(content[place - 4 : place]) == 3 * 256


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_files_are_small(tmp_path: Path, encoding: str) -> None:
    """Files are not much larger than those of Pillow's default, which takes several times as long."""
    y, x = np.mgrid[:480, :640]
    mask = (((x - 200) ** 2 + (y - 200) ** 2 < 9000) + 2 * ((x - 400) ** 2 + (y - 300) ** 2 < 20000)).astype(
        np.uint8
    )
    masks = encode(encoding, [3, 18, 58])
    masks.write(mask, tmp_path / "mask.png")
    PIL.Image.open(tmp_path / "mask.png").save(tmp_path / "default.png")
    ours, default = ((tmp_path / name).stat().st_size for name in ("mask.png", "default.png"))
    assert ours <= 1.3 * default


@pytest.mark.parametrize("ids", [[3, 18], [3000, 4000]])
def test_palette_shows_the_colors_of_the_labels(tmp_path: Path, ids: list[int]) -> None:
    masks = encode("palette", ids)
    masks.write(np.array([[0, 1, 2, 255]], dtype=np.uint8), tmp_path / "mask.png")
    shown = np.asarray(PIL.Image.open(tmp_path / "mask.png").convert("RGB"))[0].tolist()
    assert shown == [[0, 0, 0], *(list(c.color) for c in masks.labels.classes[1:]), [224, 224, 192]]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_file_names(encoding: str) -> None:
    masks = encode(encoding, [58, 18, 3])
    assert masks.file_name("photo.jpg", [0, 3, 2, 255]) == "photo_mask_cats_18_58.png"
    assert masks.file_name("photo.jpg", [0, 255]) == "photo_mask_cats_none.png"
    assert masks.file_name("photo.jpg", []) == "photo_mask_cats_none.png"
    assert masks.file_name("a/b.c/photo.one.jpeg", [1]) == "a/b.c/photo.one_mask_cats_3.png"
    assert masks.file_name("photo", [1]) == "photo_mask_cats_3.png"


@pytest.mark.parametrize(
    "stem", ["photo", "x" * 150, "ä" * 100, "日本" * 30], ids=["short", "long", "umlauts", "kanji"]
)
def test_long_file_names_are_cut(tmp_path: Path, stem: str) -> None:
    """File systems allow 255 bytes; each of these stems is a possible image name."""
    masks = encode("palette", range(100, 200))
    name = masks.file_name(f"sub/{stem}.jpg", range(101))
    assert len(Path(name).name.encode()) <= 255
    assert name.startswith(f"sub/{stem}_mask_cats_100_")
    assert name.endswith("_etc.png")
    masks.write(np.zeros((1, 1), np.uint8), tmp_path / name)


def save(path: Path, pixels: np.ndarray) -> Path:
    PIL.Image.fromarray(pixels).save(path)
    return path


def test_unknown_values(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.array([[0, 3, 4]], np.uint8))
    with pytest.raises(CocosegError, match=r"mask\.png: pixel values \[4\] are no class"):
        encode("palette", [3, 18]).read(path)
    path = save(tmp_path / "mask.png", np.array([[300, 3]], np.uint16))
    with pytest.raises(CocosegError, match=r"mask\.png: pixel values \[3\] are no class"):
        encode("x100", [3]).read(path)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("palette", np.zeros((2, 3), np.uint16)),
        ("palette", np.zeros((2, 3, 3), np.uint8)),
        ("palette", np.zeros((2, 3, 4), np.uint8)),
        ("palette", np.zeros((2, 3), bool)),
        ("uint16", np.zeros((2, 3), np.uint8)),
        ("x100", np.zeros((2, 3, 3), np.uint8)),
    ],
)
def test_wrong_mode(tmp_path: Path, encoding: str, pixels: np.ndarray) -> None:
    path = save(tmp_path / "mask.png", pixels)
    with pytest.raises(CocosegError, match=rf"mask\.png: .*{encoding}"):
        encode(encoding, [3]).read(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damaged_file(tmp_path: Path, encoding: str) -> None:
    """A file that is cut or changed anywhere is refused by name, or can still be read."""
    masks = encode(encoding, [3, 18])
    mask = np.random.default_rng(0).choice([0, 1, 2, 255], size=(12, 10)).astype(np.uint8)
    path = tmp_path / "mask.png"
    masks.write(mask, path)
    whole = path.read_bytes()
    pixels = whole.index(b"IDAT")
    for content in (b"", whole[:10], whole[: pixels + 20], whole[: pixels + 20] + b"\0" * 40):
        path.write_bytes(content)
        with pytest.raises(CocosegError, match=r"mask\.png: "):
            masks.read(path)

    cut = [whole[:place] for place in range(0, len(whole), 11)]
    changed = [whole[:place] + b"\xff" + whole[place + 1 :] for place in range(0, len(whole), 7)]
    # With another length, what follows the pixels is sought in the wrong place.
    lengths = [whole[: pixels - 1] + bytes([n]) + whole[pixels:] for n in range(0, 256, 5)]
    for content in (*cut, *changed, *lengths):
        path.write_bytes(content)
        message = "mask.png: "
        try:
            masks.read(path)
        except CocosegError as error:
            message = str(error)
        assert "mask.png: " in message
