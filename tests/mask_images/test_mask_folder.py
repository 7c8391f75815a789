"""Folders of mask images as training input: the masks of each layout, and errors."""

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg.config import Config
from cocoseg.config_checks import convert
from cocoseg.config_cross_checks import check
from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.mask_images.pairs import find_pairs
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import read_index
from conftest import write_coco

HEIGHT, WIDTH = 6, 8
# Values of the mask of image 0: a cat (1) on background, a dog (2), a row of void (255).
VALUES = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
VALUES[1:3, 1:4] = 1
VALUES[3:5, 5:8] = 2
VALUES[5] = 255
COLORS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
BY_COLOR = [{"name": "cat", "color": [128, 0, 0]}, {"name": "dog", "color": [0, 128, 0]}]


def image_of(values: np.ndarray, kind: str) -> PIL.Image.Image:
    """A mask as an image of some kind."""
    if kind == "gray":
        return PIL.Image.fromarray(values)
    if kind == "16 bits":
        return PIL.Image.fromarray(values.astype(np.uint16))
    if kind == "palette":
        image = PIL.Image.fromarray(values)
        image.putpalette([level for value in range(256) for level in COLORS.get(value, (7, 7, 7))])
        return image
    rgb = np.array([[COLORS[value] for value in row] for row in values.tolist()], dtype=np.uint8)
    return PIL.Image.fromarray(rgb).convert(kind)


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, (90, 120, 60)).save(path, **options)


def save_mask(path: Path, values: np.ndarray = VALUES, kind: str = "gray") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_of(values, kind).save(path)


def make_pairs(root: Path, count: int = 2, kind: str = "gray") -> None:
    """Write `images/<n>.jpg` and `masks/<n>.png`; only the first mask shows a dog."""
    for number in range(count):
        save_image(root / "images" / f"{number}.jpg")
        values = VALUES if number == 0 else np.where(VALUES == 2, 0, VALUES).astype(np.uint8)
        save_mask(root / "masks" / f"{number}.png", values, kind)


def config_of(root: Path, **data: Any) -> Config:
    subset = {"size": None, "keep_empty": True, **data.pop("subset", {})}
    places = {"images": root / "images", "masks": root / "masks", "prepared_dir": root / "prepared"}
    settings = {"data": {**places, **data, "subset": subset}, "prepare": {"workers": 1}}
    config = convert({**settings, "trainer": {"max_epochs": 1}}, Config)
    check(config)
    return config


def prepared(root: Path, **data: Any) -> tuple[MaskEncoding, list[np.ndarray]]:
    """Prepare a set; returns its encoding and its masks of class indices."""
    config = config_of(root, **data)
    prepare(config)
    folder = Path(str(config.data.prepared_dir))
    encoding = MaskEncoding.load(folder)
    return encoding, [encoding.read(folder / pair.mask) for pair in read_index(folder).pairs]


@pytest.mark.parametrize("kind", ["gray", "16 bits", "palette"])
def test_numbers_become_classes(tmp_path: Path, kind: str) -> None:
    make_pairs(tmp_path, kind=kind)
    encoding, masks = prepared(tmp_path)
    assert encoding.labels.names == ["background", "1", "2"]
    np.testing.assert_array_equal(masks[0], VALUES)
    encoding, masks = prepared(tmp_path, classes=["background", "cat", "dog"])
    assert encoding.labels.names == ["background", "cat", "dog"]
    np.testing.assert_array_equal(masks[0], VALUES)
    assert [pair.mask for pair in read_index(tmp_path / "prepared").pairs] == [
        "masks/0_mask_cats_1_2.png",
        "masks/1_mask_cats_1.png",
    ]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("class_dict.csv", "name,r,g,b\nvoid,0,0,0\nfat cat,128,0,0\ndog, 0, 128, 0\n"),
        ("label_colors.txt", "128 0 0\t\tfat cat\n0 128 0\t\tdog\n0 0 0\tvoid\n"),  # CamVid
    ],
)
def test_tables_of_colors(tmp_path: Path, name: str, lines: str) -> None:
    make_pairs(tmp_path, kind="RGB")
    (tmp_path / name).write_text(lines)
    encoding, masks = prepared(tmp_path, classes=str(tmp_path / name))
    assert sorted(encoding.labels.names) == ["background", "dog", "fat cat", "void"]
    assert encoding.labels.names[masks[0][1, 1]] == "fat cat"
    assert encoding.labels.names[masks[0][0, 0]] == "void"


def test_numbers_beyond_8_bits_are_classes_of_their_own(tmp_path: Path) -> None:
    make_pairs(tmp_path, count=1)
    values = np.select([VALUES == 1, VALUES == 2], [257, 60_000], 0).astype(np.uint16)
    PIL.Image.fromarray(values).save(tmp_path / "masks" / "0.png")
    encoding, masks = prepared(tmp_path)
    assert encoding.labels.names == ["background", "257", "60000"]
    np.testing.assert_array_equal(masks[0], VALUES % 255)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "palette"])
def test_colors_become_classes(tmp_path: Path, kind: str) -> None:
    make_pairs(tmp_path, kind=kind)
    encoding, masks = prepared(tmp_path, classes=BY_COLOR)
    assert encoding.labels.names == ["background", "cat", "dog"]
    assert [label.category_ids for label in encoding.labels.classes] == [(), (1,), (2,)]
    np.testing.assert_array_equal(masks[0], VALUES)


def write_gray_of_two_bits(path: Path, values: np.ndarray) -> None:
    """Write a PNG of a kind that Pillow does not write; values (H, 8) uint8 of 0 to 3."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)

    packed = (values.reshape(-1, 2, 4) << [6, 4, 2, 0]).sum(axis=-1, dtype=np.uint8)
    head = WIDTH.to_bytes(4) + HEIGHT.to_bytes(4) + bytes([2, 0, 0, 0, 0])
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_gray_of_few_bits_is_not_stretched(tmp_path: Path) -> None:
    make_pairs(tmp_path, count=1)
    values, path = np.minimum(VALUES, 3), tmp_path / "masks" / "0.png"
    write_gray_of_two_bits(path, values)
    with PIL.Image.open(path) as opened:
        assert np.asarray(opened).max() == 255  # as Pillow stretches 3
    _, masks = prepared(tmp_path)
    np.testing.assert_array_equal(masks[0], values)


def test_value_0_is_a_class_where_it_is_named(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    encoding, masks = prepared(tmp_path, classes=["road", "cat", "dog"])
    assert encoding.labels.names == ["background", "road", "cat", "dog"]
    np.testing.assert_array_equal(masks[0], np.where(VALUES == 255, 255, VALUES + 1))
    assert read_index(tmp_path / "prepared").pixels[0] == 0


def test_value_0_is_ignored_where_it_is_listed(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    _, masks = prepared(tmp_path, classes=["background", "cat", "dog"], ignore=[0, 255])
    np.testing.assert_array_equal(masks[0], np.where(VALUES == 0, 255, VALUES))


def test_white_is_a_class_in_masks_of_black_and_white(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.jpg")
    save_mask(tmp_path / "masks" / "a.png", np.where(VALUES == 1, 255, 0).astype(np.uint8))
    with pytest.raises(CocosegError, match=r"all pixels are 0 or ignored; .*name: object, id: 255"):
        prepared(tmp_path)
    _, masks = prepared(tmp_path, classes=[{"name": "object", "id": 255}])
    np.testing.assert_array_equal(masks[0], VALUES == 1)


def test_classes_are_chosen_and_merged(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    classes = ["background", "cat", "dog"]
    _, masks = prepared(tmp_path, classes=classes, labels={"pet": ["dog", "cat"]})
    np.testing.assert_array_equal(masks[0] == 1, (VALUES == 1) | (VALUES == 2))
    _, masks = prepared(tmp_path, classes=classes, subset={"categories": ["dog"], "other": "ignore"})
    np.testing.assert_array_equal(
        masks[0], np.select([VALUES == 1, VALUES == 2], [255, 1], VALUES.astype(int))
    )
    assert len(masks) == 2
    _, masks = prepared(tmp_path, classes=classes, subset={"categories": [2], "keep_empty": False})
    assert len(masks) == 1  # the other shows no dog
    with pytest.raises(CocosegError, match="no mask shows the chosen classes"):
        prepared(tmp_path, classes=classes, subset={"keep_empty": False, "min_pixels": 13})


def test_choice_of_images_is_nested(tmp_path: Path) -> None:
    make_pairs(tmp_path, count=9)

    def chosen(**subset: int) -> set[str]:
        prepared(tmp_path, subset=subset)
        return {pair.image for pair in read_index(tmp_path / "prepared").pairs}

    assert chosen(size=3, seed=1) < chosen(size=6, seed=1)
    assert chosen(size=3, seed=1) != chosen(size=3, seed=2)


def test_cityscapes(tmp_path: Path) -> None:
    for city, number in (("aachen", 0), ("bonn", 0), ("bonn", 1)):
        stem = f"train/{city}/{city}_{number}"
        save_image(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
        save_mask(
            tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", np.where(VALUES == 1, 7, 3).astype(np.uint8)
        )
        save_mask(
            tmp_path / "gtFine" / f"{stem}_gtFine_labelTrainIds.png",
            np.where(VALUES == 1, 0, 255).astype(np.uint8),
        )
        save_mask(tmp_path / "gtFine" / f"{stem}_gtFine_color.png", kind="RGBA")
        save_mask(tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png", kind="16 bits")
        (tmp_path / "gtFine" / f"{stem}_gtFine_polygons.json").write_text("{}")
    places = {"images": tmp_path / "leftImg8bit", "masks": tmp_path / "gtFine"}
    (tmp_path / "classes.json").write_text(json.dumps([{"name": "road", "id": 7}, {"name": "car", "id": 26}]))
    _, masks = prepared(tmp_path, **places, classes=str(tmp_path / "classes.json"), ignore=[3])
    assert len(masks) == 3
    np.testing.assert_array_equal(masks[0], np.where(VALUES == 1, 1, 255))
    pair = read_index(tmp_path / "prepared").pairs[0]
    assert pair.image == "train/aachen/aachen_0_leftImg8bit.png"
    encoding, masks = prepared(tmp_path, **places, classes=["road"], mask_suffix="_gtFine_labelTrainIds")
    assert encoding.labels.names == ["background", "road"]
    np.testing.assert_array_equal(masks[0], np.where(VALUES == 1, 1, 255))


@pytest.mark.parametrize("kind", ["RGB", "palette"])
def test_cvat(tmp_path: Path, kind: str) -> None:
    save_image(tmp_path / "JPEGImages" / "street" / "a.jpg")
    save_mask(
        tmp_path / "SegmentationClass" / "street" / "a.png",
        np.where(VALUES == 255, 0, VALUES).astype(np.uint8),
        kind,
    )
    save_mask(tmp_path / "SegmentationObject" / "street" / "a.png", kind="RGB")
    label_map = tmp_path / "labelmap.txt"
    label_map.write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0:tail:runs\n"
    )
    places = {"images": tmp_path / "JPEGImages", "masks": tmp_path / "SegmentationClass"}
    if kind == "RGB":
        with pytest.raises(CocosegError, match=re.escape(f"'data.classes={label_map}'")):
            prepared(tmp_path, **places)
    encoding, masks = prepared(tmp_path, **places, classes=str(label_map))
    assert encoding.labels.names == ["background", "cat", "dog"]
    np.testing.assert_array_equal(masks[0], np.where(VALUES == 255, 0, VALUES))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a.png"),
        ("a.png", "a_mask.png"),
        ("x/a.jpg", "x/a-mask.tif"),
        ("a_sat.jpg", "a_mask.png"),
        ("0016E5.png", "0016E5_L.png"),
        ("a_leftImg8bit.png", "a_gtFine_labelIds.png"),
    ],
)
def test_usual_suffixes_are_found(tmp_path: Path, image: str, mask: str) -> None:
    save_image(tmp_path / "images" / image)
    save_mask(tmp_path / "masks" / mask)
    config = config_of(tmp_path)
    assert find_pairs(tmp_path / "images", tmp_path / "masks", config.data) == [(image, mask)]


def test_one_folder_may_hold_images_and_masks(tmp_path: Path) -> None:
    save_image(tmp_path / "all" / "a.jpg")
    save_image(tmp_path / "all" / "b.png")
    for stem in "ab":
        save_mask(tmp_path / "all" / f"{stem}_mask.png")
    places = {"images": tmp_path / "all", "masks": tmp_path / "all"}
    _, masks = prepared(tmp_path, **places)
    assert len(masks) == 2
    (tmp_path / "all" / "masks").mkdir()
    for stem in "ab":
        (tmp_path / "all" / f"{stem}_mask.png").rename(tmp_path / "all" / "masks" / f"{stem}.png")
    _, masks = prepared(tmp_path, **{**places, "masks": tmp_path / "all" / "masks"})
    assert len(masks) == 2


def save_jpeg_mask(root: Path) -> None:
    (root / "masks" / "0.png").unlink()
    image_of(VALUES, "gray").save(root / "masks" / "0.png", format="JPEG")


def save_photograph(root: Path) -> None:
    side = np.arange(100, dtype=np.uint8)
    photograph = np.stack(np.broadcast_arrays(side, side[:, None], side[:1]), axis=-1)
    PIL.Image.fromarray(photograph).save(root / "masks" / "0.png")
    save_image(root / "images" / "0.jpg", (100, 100))


def save_pages(root: Path) -> None:
    (root / "masks" / "0.png").unlink()
    page = image_of(VALUES, "gray")
    page.save(root / "masks" / "0.tif", save_all=True, append_images=[page])


def save_transparent(root: Path) -> None:
    image = image_of(VALUES, "RGBA")
    image.putpixel((0, 0), (0, 0, 0, 254))
    image.save(root / "masks" / "0.png")


BROKEN = {
    "size": (
        lambda root: save_mask(root / "masks" / "0.png", VALUES[:3]),
        r"images/0\.jpg: the image is 8x6 \(width x height\), its mask .*masks/0\.png is 8x3",
    ),
    "colors": (
        lambda root: save_mask(root / "masks" / "0.png", kind="RGB"),
        r"2 colors of no class: \[128,0,0\] \(6 pixels in 1 mask: 0\.png\), \[0,128,0\] .*; name them, "
        r"'data\.classes=\[\{name: …, color: \[128,0,0\]\}, …\]', or ignore them, "
        r"'data\.ignore=\[255,\[128,0,0\],\[0,128,0\],\[224,224,192\]\]'",
    ),
    "value": (
        lambda root: save_mask(root / "masks" / "1.png", np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)),
        r"masks: 1 value of no class: 9 \(48 pixels in 1 mask: 1\.png\); name them, "
        r"'data\.classes=\[\{name: …, id: 9\}, …\]', or ignore them, "
        r"'data\.ignore=\[9,255,\[224,224,192\]\]'",
    ),
    "image without mask": (
        lambda root: save_image(root / "images" / "2.jpg"),
        r"1 of 3 images in .*images have no mask \(2\.jpg\); take them out",
    ),
    "mask without image": (
        lambda root: save_mask(root / "masks" / "sub" / "2.png"),
        r"1 of 3 masks in .*masks have no image \(sub/2\.png\)",
    ),
    "two masks": (
        lambda root: save_mask(root / "masks" / "0.tif"),
        r"1 of 2 masks in .* have the name of others \(0\.png and 0\.tif\)",
    ),
    "two images": (
        lambda root: save_image(root / "images" / "0.png"),
        r"1 of 2 images in .* have the name of others \(0\.jpg and 0\.png\)",
    ),
    "jpeg": (save_jpeg_mask, r"masks/0\.png: JPEG changes pixels, so it can't hold a mask; give PNG"),
    "photograph": (save_photograph, r"masks/0\.png: 10000 different values, as in a photograph"),
    "pages": (save_pages, r"masks/0\.tif: several pages.*; save the mask alone, as PNG"),
    "transparent": (save_transparent, r"masks/0\.png: transparent pixels have no class"),
    "broken": (lambda root: (root / "masks" / "0.png").write_bytes(b"no image"), r"0\.png: not a readable"),
    "broken image": (lambda root: (root / "images" / "0.jpg").write_bytes(b"no"), r"0\.jpg: not a readable"),
    "name": (
        lambda root: (root / "masks" / "0.png").rename(root / "masks" / "0\n.png"),
        r"rename it; not all systems allow such a name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sets_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    make_pairs(tmp_path)
    break_it, message = BROKEN[name]
    break_it(tmp_path)
    begun: list[str] = []
    with pytest.raises(CocosegError, match=message):
        prepare(
            config_of(tmp_path, classes=["background", "cat", "dog"]), begin=lambda: begun.append("begun")
        )
    assert not begun
    assert not [path for path in (tmp_path / "prepared").rglob("*") if path.name != ".lock"]


def test_names_that_no_rule_pairs(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.jpg")
    save_mask(tmp_path / "masks" / "a_tree.png")
    with pytest.raises(
        CocosegError, match=r"no mask has the name of an image: .*as in data\.mask_suffix=_mask"
    ):
        prepared(tmp_path)
    _, masks = prepared(tmp_path, mask_suffix="_tree")
    assert len(masks) == 1
    (tmp_path / "masks" / "a_tree.png").rename(tmp_path / "masks" / "a.jpg")
    with pytest.raises(CocosegError, match=r"data\.masks: no masks in .*; a\.jpg is of a lossy format"):
        prepared(tmp_path)


def test_a_set_is_prepared_anew_when_a_file_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pairs(tmp_path)
    caplog.set_level("INFO")
    prepared(tmp_path)
    caplog.clear()
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path, images="images", masks="./masks")
    assert "prepared already, nothing changed" in caplog.text
    mask = tmp_path / "masks" / "1.png"
    save_mask(mask, np.full((HEIGHT, WIDTH), 2, dtype=np.uint8))
    os.utime(mask, ns=(1, 1))
    _, masks = prepared(tmp_path)
    assert (masks[1] == 2).all()
    make_pairs(tmp_path, count=3)
    _, masks = prepared(tmp_path)
    assert len(masks) == 3


def test_classes_as_found_are_those_of_the_training_masks(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    save_image(tmp_path / "val" / "a.jpg")
    save_mask(tmp_path / "val_masks" / "a.png", np.where(VALUES == 2, 0, VALUES).astype(np.uint8))
    places = {"val_images": tmp_path / "val", "val_masks": tmp_path / "val_masks"}
    encoding, _ = prepared(tmp_path, **places)
    assert MaskEncoding.load(tmp_path / "prepared" / "val").labels.difference(encoding.labels) is None
    save_mask(tmp_path / "val_masks" / "a.png", np.full((HEIGHT, WIDTH), 3, dtype=np.uint8))
    with pytest.raises(
        CocosegError, match=r"val_masks: other labels .* 2 classes against 3; name .*'data\.classes=\[…\]'"
    ):
        prepared(tmp_path, **places)
    save_mask(tmp_path / "masks" / "1.png", np.full((HEIGHT, WIDTH), 3, dtype=np.uint8))
    encoding, _ = prepared(tmp_path, **places)
    assert encoding.labels.names == ["background", "1", "2", "3"]
    save_mask(tmp_path / "masks" / "1.png", np.full((HEIGHT, WIDTH), 4, dtype=np.uint8))
    save_mask(tmp_path / "val_masks" / "a.png")
    prepared(tmp_path, **places)
    save_mask(tmp_path / "masks" / "1.png")  # no 4 any more, so that the validation set is prepared anew
    prepared(tmp_path, **places)
    assert MaskEncoding.load(tmp_path / "prepared" / "val").labels.names == ["background", "1", "2"]


def test_report(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    prepared(tmp_path, classes=["background", "cat", "dog", "cow"])
    text = (tmp_path / "prepared" / "report.md").read_text()
    assert "- ignored value 255 (16 pixels in 2 masks: 0.png, 1.png)" in text
    assert "- 1 class: not a single pixel: not in the masks of these images (cow)" in text
    assert "| dog | 2 | 2 | 1 | 6 | 6.2 % |" in text
    assert (tmp_path / "prepared" / "preview.png").is_file()
    assert not list((tmp_path / "prepared").glob("subset*"))


def save_rotated(root: Path, orientation: int, size: tuple[int, int], values: np.ndarray) -> None:
    """Write an image with an EXIF rotation, whose stored pixels have the width and height `size`."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    save_image(root / "images" / "a.jpg", size, exif=exif)
    save_mask(root / "masks" / "a.png", values)


def test_masks_belong_to_the_image_as_stored_or_turned(tmp_path: Path) -> None:
    save_rotated(tmp_path, 6, (HEIGHT, WIDTH), VALUES)  # upright it is 8x6, as its mask
    prepared(tmp_path)
    [pair] = read_index(tmp_path / "prepared").pairs
    encoding = MaskEncoding.load(tmp_path / "prepared")
    assert pair.orientation == 6
    assert encoding.read(tmp_path / "prepared" / pair.mask).shape == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(encoding.read(tmp_path / "prepared" / pair.mask, 6), VALUES)
    with pytest.raises(CocosegError, match=r"turned by EXIF rotation; set data\.exif=auto"):
        prepared(tmp_path, exif="ignore")
    save_rotated(tmp_path, 6, (WIDTH, HEIGHT), VALUES)  # as stored
    prepared(tmp_path)
    assert read_index(tmp_path / "prepared").pairs[0].orientation == 1
    assert "None." in (tmp_path / "prepared" / "report.md").read_text()


def test_edges_tell_where_the_size_does_not(tmp_path: Path) -> None:
    values = np.zeros((64, 96), dtype=np.uint8)
    values[5:25, 10:40] = 1
    pixels = PIL.Image.fromarray(np.where(values == 1, 220, 30).astype(np.uint8)).convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "images").mkdir()
    for reading, stored in ((3, pixels.rotate(180)), (1, pixels)):
        stored.save(tmp_path / "images" / "a.png", exif=exif)
        save_mask(tmp_path / "masks" / "a.png", values)
        prepared(tmp_path)
        [pair] = read_index(tmp_path / "prepared").pairs
        assert pair.orientation == reading
        np.testing.assert_array_equal(
            MaskEncoding.load(tmp_path / "prepared").read(tmp_path / "prepared" / pair.mask, reading), values
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no class in it"),
        (["cat", {"name": "dog", "id": 2}], "names and entries are mixed; entry 0 is 'cat'"),
        ([{"name": "cat"}], "entry 0, 'cat', has neither an id nor a color"),
        ([{"name": "cat", "id": 1, "colour": [1, 2, 3]}], "entry 0: .*colour"),
        ([{"name": "cat", "color": [1, 2, 300]}], r"entry 0: .*it must be like \{name: car, id: 7\}"),
        (
            [{"name": "cat", "id": 1}, {"name": "dog", "id": 1}],
            "1 is given to two classes, one of them 'dog'",
        ),
        ([{"id": 1}], "entry 0: .*name"),
    ],
)
def test_bad_classes_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    make_pairs(tmp_path)
    with pytest.raises(CocosegError, match=rf"data\.classes: .*{message}"):
        prepared(tmp_path, classes=content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "background\ncat\n\n# a comment\ndog\n", None),
        ("classes.yaml", "[background, cat, dog]", None),
        ("classes.json", '[{"name": "cat", "id": 1}, {"name": "dog", "id": 2}]', None),
        ("class_names.txt", "_background_\ncat\ndog\n", None),  # LabelMe
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n", None),  # Roboflow
        ("classes.csv", "1,cat\n2,dog\n", None),
        ("classes.json", '{"cat": 1}', "not a list of names"),
        ("_classes.csv", "Pixel Value, Class\n0, background\ncat\n", "the line 'cat' is not .*, number,name"),
        ("classes.csv", "", "no class in it"),
        ("classes.txt", "cat:1,2,3::\ndog\n", "the line 'dog' is not like the others"),
        ("classes.txt", "cat:1,2,300::\n", "entry 0: .*300|<= 255"),
    ],
)
def test_classes_in_a_file(tmp_path: Path, name: str, content: str, message: str | None) -> None:
    make_pairs(tmp_path)
    (tmp_path / name).write_text(content)
    if message is None:
        encoding, _ = prepared(tmp_path, classes=str(tmp_path / name))
        assert encoding.labels.names == ["background", "cat", "dog"]
        return
    with pytest.raises(CocosegError, match=message):
        prepared(tmp_path, classes=str(tmp_path / name))


def test_settings_that_do_not_belong_together(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    file = str(write_coco(tmp_path / "c.json"))
    for data, message in (
        ({"masks": None}, r"data\.annotations is not set: .*masks as image files: data=masks "),
        ({"annotations": file}, r"data\.annotations is set, but data\.masks too"),
        ({"val_masks": str(tmp_path / "masks")}, r"data\.val_masks is set without data\.val_images"),
        ({"val_images": str(tmp_path / "images")}, r"data\.val_images is set without data\.val_masks"),
        (
            {"val_annotations": file},
            r"data\.val_annotations is set, but data\.masks too; give data\.val_masks",
        ),
        ({"masks": "nowhere"}, r"data\.masks: no folder nowhere"),
        ({"classes": "nowhere.txt"}, r"data\.classes: no file nowhere\.txt"),
        ({"masks": None, "annotations": str(tmp_path / "masks")}, r"is no COCO instances file .*data=masks "),
        (
            {"masks": None, "annotations": str(tmp_path / "masks" / "0.png")},
            r"0\.png is no COCO .*data=masks ",
        ),
    ):
        with pytest.raises(CocosegError, match=message):
            config_of(tmp_path, **data)
    data = {"root": "nowhere", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    with pytest.raises(CocosegError, match=r"^data\.root: no folder nowhere; .* and the masks \(.*masks\)"):
        check(convert({"data": data, "trainer": {"max_epochs": 1}}, Config))
