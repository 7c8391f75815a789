"""Annotation files as other programs export them, with their peculiarities: they are prepared unchanged."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from test_any_file import compressed, painted

from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.preparation.prepare import prepare

WIDTH, HEIGHT = 12, 9
SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]
TRIANGLE = [4.5, 3.25, 10.0, 3.25, 7.5, 8.0]
BBOX = [2.0, 1.0, 4.0, 4.0]
RUNS = [10, 3, 6, 3, 6, 3, 77]  # three pixels in each of three columns
Content = dict[str, Any]
Coco = dict[str, Any]


# --- the files


def cvat() -> Coco:
    """Its COCO 1.0 format: ids from 1, empty strings, attributes; brush masks are uncompressed RLE."""

    def annotation(number: int, category: int, segmentation: Any, **more: Any) -> Content:
        fields = {"id": number, "image_id": 1, "category_id": category, "segmentation": segmentation}
        attributes = {"occluded": False, "rotation": 0.0, "track_id": 3, "keyframe": True, "color": "rot"}
        return {**fields, "area": 16.0, "bbox": BBOX, "iscrowd": 0, "attributes": attributes, **more}

    empty = {"flickr_url": "", "coco_url": "", "date_captured": 0, "license": 0}
    names = ("frame_000000.PNG", "sub/frame_000001.PNG")
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), ""),
        "categories": [
            {"id": number, "name": name, "supercategory": ""}
            for number, name in enumerate(("car", "road sign"), start=1)
        ],
        "images": [
            {"id": number, "width": WIDTH, "height": HEIGHT, "file_name": name, **empty}
            for number, name in enumerate(names, start=1)
        ],
        "annotations": [
            annotation(1, 2, [SQUARE]),
            annotation(2, 1, [TRIANGLE, [0, 0, 3, 0, 0, 3]]),
            annotation(3, 1, {"counts": RUNS, "size": [HEIGHT, WIDTH]}, iscrowd=1, image_id=2),
            annotation(4, 2, {"counts": RUNS, "size": [HEIGHT, WIDTH]}, attributes={}, image_id=2),
        ],
    }


def label_studio() -> Coco:
    """Ids from 0, images in a folder under names with a random part; rectangles have no outline."""
    fields = {"ignore": 0, "iscrowd": 0, "area": 16, "bbox": BBOX}
    return {
        "images": [
            {"width": WIDTH, "height": HEIGHT, "id": 0, "file_name": "images/62a623a0-My_photo_(1).jpg"},
            {"width": WIDTH, "height": HEIGHT, "id": 1, "file_name": "images/0b1c2d3e-zwei.jpg"},
        ],
        "categories": [{"id": 0, "name": "Airplane"}, {"id": 1, "name": "Car"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 1, "segmentation": [SQUARE], **fields},
            {"id": 1, "image_id": 0, "category_id": 0, "segmentation": [TRIANGLE]},
            {"id": 2, "image_id": 1, "category_id": 0, "segmentation": [], **fields},
            {
                "id": 3,
                "image_id": 1,
                "category_id": 0,
                "segmentation": [[*TRIANGLE, *TRIANGLE[:2]]],
                **fields,
            },
        ],
        "info": {
            "year": 2024,
            "version": "1.0",
            "description": "",
            "contributor": "Label Studio",
            "url": "",
            "date_created": "2024-03-01 10:12:13.456789",
        },
    }


def roboflow() -> Coco:
    """A category 0 named after the project, which nothing is of; an image's former name in `extra`."""

    def image(number: int, stem: str, **more: Any) -> Content:
        name = f"{stem}_jpg.rf.0123456789abcdef0123456789abcdef.jpg"
        size = {"height": HEIGHT, "width": WIDTH}
        return {"id": number, "license": 1, "file_name": name, **size, "date_captured": "2024-03-01", **more}

    return {
        "info": {
            "year": "2024",
            "version": "3",
            "description": "Exported from roboflow.com",
            "contributor": "",
            "url": "https://public.roboflow.com/object-detection/undefined",
            "date_created": "2024-03-01T09:08:07+00:00",
        },
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "fruit-AbCd", "supercategory": "none"},
            {"id": 1, "name": "apple", "supercategory": "fruit-AbCd"},
            {"id": 2, "name": "pear", "supercategory": "fruit-AbCd"},
        ],
        "images": [image(0, "one", extra={"name": "one.jpg"}), image(1, "two", extra={"user_tags": ["a"]})],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category,
                "bbox": [2, 1, 4.0, 4],
                "area": 16,
                "segmentation": segmentation,
                "iscrowd": 0,
            }
            for number, (image_id, category, segmentation) in enumerate(
                [(0, 1, [SQUARE]), (0, 2, [TRIANGLE]), (1, 2, [[2, 1, 6.5, 1, 6.5, 5.25, 2, 5.25, 2, 1]])]
            )
        ],
    }


def labelme() -> Coco:
    """labelme's own script: nulls, a `type`, categories from 0 without supercategory."""
    nothing = {"license": 0, "url": None, "date_captured": None}
    return {
        "info": {
            "description": None,
            "url": None,
            "version": None,
            "year": 2024,
            "contributor": None,
            "date_created": "2024-03-01 10:12:13.456789",
        },
        "licenses": [{"url": None, "id": 0, "name": None}],
        "images": [{**nothing, "file_name": "JPEGImages/a.jpg", "height": HEIGHT, "width": WIDTH, "id": 0}],
        "type": "instances",
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 1,
                "segmentation": [[2, 1, 6.25, 1.0, 6, 5, 2.0, 5]],
                "area": 16.0,
                "bbox": BBOX,
                "iscrowd": 0,
            },
        ],
        "categories": [
            {"supercategory": None, "id": 0, "name": "_background_"},
            {"supercategory": None, "id": 1, "name": "cat"},
        ],
    }


def labelme2coco() -> Coco:
    """The package: categories from 0, everything else from 1; one polygon may stand there unwrapped."""
    fields = {"iscrowd": 0, "image_id": 1, "bbox": [2, 1, 4, 4], "area": 16}
    return {
        "images": [{"height": HEIGHT, "width": WIDTH, "id": 1, "file_name": "a.png"}],
        "categories": [
            {"id": 0, "name": "cat", "supercategory": "cat"},
            {"id": 1, "name": "dog", "supercategory": "dog"},
        ],
        "annotations": [
            {**fields, "segmentation": SQUARE, "category_id": 1, "id": 1},
            {**fields, "segmentation": [TRIANGLE], "category_id": 0, "id": 2},
        ],
    }


def plain(*categories: Content, **of_annotation: Any) -> Coco:
    """An object of the first category, and an object of the last one over it."""
    ids = [category["id"] for category in categories]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    shapes = ([SQUARE], [TRIANGLE])
    annotations = [
        {"id": number, "image_id": 1, "category_id": category, "segmentation": shape, **of_annotation}
        for number, (category, shape) in enumerate(zip((ids[0], ids[-1]), shapes, strict=True))
    ]
    return {"images": [image], "annotations": annotations, "categories": list(categories)}


def named(*ids: int) -> list[Content]:
    return [{"id": identity, "name": f"class {identity}"} for identity in ids]


def large_ids() -> Coco:
    """Ids made of hashes or time stamps."""
    coco = plain(*named(4, 2**31 + 7), image_id=2**53 + 1)
    coco["images"][0]["id"] = 2**53 + 1
    for annotation in coco["annotations"]:
        annotation["id"] += 20240301101213456789 % 2**63
    return coco


def compressed_runs() -> Coco:
    rle = {"size": [HEIGHT, WIDTH], "counts": compressed(RUNS)}
    coco = plain(*named(1, 2))
    coco["annotations"][0] |= {"segmentation": rle, "iscrowd": 1}
    coco["annotations"].append({**coco["annotations"][0], "id": 9, "iscrowd": 0})
    return coco


def other_alphabets() -> Coco:
    coco = plain(
        {"id": 1, "name": "Straßenbahn"}, {"id": 2, "name": "横断歩道"}, {"id": 3, "name": "🚲 e\u0301"}
    )
    coco["images"][0]["file_name"] = "Фото/Größe (1) ½ 写真.png"
    return coco


def unknown_keys() -> Coco:
    strange = {"score": 0.123456789012345678, "keypoints": [], "nested": {"a": [None, {"b": 1e-7}]}, "": ""}
    coco = plain(*({**category, "keypoints": ["nose"], "isthing": 1} for category in named(1, 2)), **strange)
    coco["images"][0] |= {"tags": ["x"], "exif": {"iso": 100}, "annotations": 3}
    return {"$schema": "x", **coco, "videos": [], "segment_info": None, "segmentation": 1}


def booleans() -> Coco:
    coco = plain(*named(1, 2), iscrowd=False, area=None)
    coco["annotations"][0]["iscrowd"] = True
    return coco


def other_annotation_ids() -> Coco:
    """TACO's file has one of them twice, others have texts or none."""
    coco = plain(*named(1, 2, 3), id=4040)
    extra = [{**coco["annotations"][0], "id": identity} for identity in ("6f1c-a", None, "", "a\nb", 4040)]
    coco["annotations"] += extra
    del coco["annotations"][2]["id"]
    return coco


EXPORTS: list[Callable[[], Coco]] = [
    cvat,
    label_studio,
    roboflow,
    labelme,
    labelme2coco,
    large_ids,
    compressed_runs,
    other_alphabets,
    unknown_keys,
    booleans,
    other_annotation_ids,
]
IDS = [(7000, 9001), (0, 1), (3, 90), (0, 254), (1, 2, 254, 255), (65534, 65535), (9, 5, 1)]


# --- what becomes of them


def write(coco: Coco, folder: Path, **how: Any) -> Path:
    """Write the file and its images, each of another color."""
    for number, image in enumerate(coco["images"]):
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path)
    file = folder / "instances.json"
    file.write_text(json.dumps(coco, **how), encoding="utf-8")
    return file


def config(folder: Path) -> Config:
    return Config(
        data=DataConfig(
            images=str(folder / "images"),
            annotations=str(folder / "instances.json"),
            prepared_dir=str(folder / "prepared"),
            subset=SubsetConfig(size=None, keep_empty=True),
        ),
        prepare=PrepareConfig(workers=1),
    )


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def assert_prepared(coco: Coco, folder: Path) -> None:
    encoding = MaskEncoding.load(folder)
    pairs = load(folder / "index.json")["pairs"]
    assert [pair["image"] for pair in pairs] == [image["file_name"] for image in coco["images"]]
    drawn = set()
    for image, pair in zip(coco["images"], pairs, strict=True):
        expected = painted(coco, image)
        np.testing.assert_array_equal(encoding.read(folder / pair["mask"]), expected)
        drawn |= set(expected.ravel().tolist())
    assert len(drawn) > 1
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    classes = [(entry["category_id"], entry["name"]) for entry in load(folder / "labels.json")["classes"]]
    assert classes == [(None, "background"), *((entry["id"], entry["name"]) for entry in categories)]
    assert load(folder / "subset_train_annotations.json") == coco


@pytest.mark.parametrize("export", EXPORTS)
def test_export(tmp_path: Path, export: Callable[[], Coco]) -> None:
    coco = export()
    write(coco, tmp_path)
    prepare(config(tmp_path))
    assert_prepared(coco, tmp_path / "prepared")


@pytest.mark.parametrize("ids", IDS, ids=str)
def test_category_ids(tmp_path: Path, ids: tuple[int, ...]) -> None:
    coco = plain(*named(*ids))
    write(coco, tmp_path)
    prepare(config(tmp_path))
    assert_prepared(coco, tmp_path / "prepared")


@pytest.mark.parametrize("how", [{"indent": 4}, {"ensure_ascii": False}, {"separators": (",", ":")}], ids=str)
def test_any_layout_of_the_json(tmp_path: Path, how: dict[str, Any]) -> None:
    coco = {**other_alphabets(), **{"extra": {"ключ": "é"}}}
    write(coco, tmp_path, **how)
    prepare(config(tmp_path))
    assert_prepared(coco, tmp_path / "prepared")


def test_every_field_is_kept_as_it_was_written(tmp_path: Path) -> None:
    """Numbers to the last digit and letters escaped as they were, not only what they mean."""
    coco = plain(*named(1, 2))
    file = write(coco, tmp_path)
    written = '"score": 1.2300e+02, "big": 123456789012345678901234567890, "name": "\\u00e9\\/"'
    file.write_text(file.read_text().replace('"category_id"', f'{written}, "category_id"'))
    prepare(config(tmp_path))
    subset = (tmp_path / "prepared" / "subset_train_annotations.json").read_text()
    assert subset.count(written) == 2


def test_escaped_slash(tmp_path: Path) -> None:
    r"""Label Studio writes `images\/a.jpg`, which is JSON for `images/a.jpg`."""
    coco = label_studio()
    file = write(coco, tmp_path)
    file.write_text(file.read_text().replace("images/", "images\\/"))
    prepare(config(tmp_path))
    assert_prepared(coco, tmp_path / "prepared")


def test_byte_order_mark(tmp_path: Path) -> None:
    """Some programs put a byte order mark before UTF-8."""
    coco = plain(*named(1, 2))
    file = write(coco, tmp_path)
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    prepare(config(tmp_path))
    assert_prepared(coco, tmp_path / "prepared")


def test_backslash_in_a_file_name(tmp_path: Path) -> None:
    r"""Label Studio on Windows writes `images\a.jpg`; elsewhere no such file is there."""
    coco, expected = label_studio(), label_studio()
    write(coco, tmp_path)
    for image in coco["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    settings = config(tmp_path)
    words = r"missing, .*images\\62a623a0-My.*; files of .*images/62a623a0-My_photo_\(1\)\.jpg for one: "
    with pytest.raises(CocosegError, match=words) as caught:
        prepare(settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "prepared" / "masks").exists()
    settings.data.file_names = "similar"
    prepare(settings)
    assert_prepared(expected, tmp_path / "prepared")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("value", ["1", 1.5])
def test_ids_of_another_kind(tmp_path: Path, key: str, value: Any) -> None:
    """The error names the place."""
    coco = plain(*named(1, 2))
    coco["annotations"][1][key] = value
    write(coco, tmp_path)
    with pytest.raises(CocosegError, match=rf"instances\.json: .*Expected `int`.*annotations\[1\]\.{key}`"):
        prepare(config(tmp_path))
