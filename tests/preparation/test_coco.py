import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file as coco
from conftest import write_coco

IMAGE = {"id": 1, "file_name": "a.png", "width": 8, "height": 6}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": []}
CATEGORY = {"id": 2, "name": "cat"}


def without(fields: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != key}


def test_reads(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path / "c.json",
        annotations=[
            {**ANNOTATION, "id": 7, "iscrowd": True, "bbox": [0, 0, 1, 1]},
            {**without(ANNOTATION, "segmentation"), "id": 3},
        ],
    )
    file = coco.read(path)
    assert [(i.id, i.file_name, i.width, i.height) for i in file.images] == [(1, "a.png", 8, 6)]
    assert file.categories == [coco.Category(2, "cat"), coco.Category(5, "dog")]
    assert [(a.id, a.image_id, a.category_id, a.iscrowd) for a in file.annotations] == [
        (7, 1, 2, True),
        (3, 1, 2, 0),
    ]
    assert [bytes(a.segmentation) for a in file.annotations] == [b"[]", b"null"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b'{"images": [',
        b"\xff\xfe\x00",
        b'{"images": "\xff"}',
    ],
)
def test_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CocosegError, match=r"c\.json: no valid JSON in UTF-8"):
        coco.read(path)


@pytest.mark.parametrize("content", [b'{"images": 5, ', b'{"images": [{"id": "1"}, ', b"[]", b"5"])
def test_no_coco(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CocosegError, match=r"c\.json: (not a COCO instances file|no valid JSON)"):
        coco.read(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_in_json(tmp_path: Path, number: str) -> None:
    """Python's json module writes them."""
    path = write_coco(tmp_path / "c.json", annotations=[{**ANNOTATION, "area": float(number)}])
    with pytest.raises(
        CocosegError, match=r"c\.json: .*\(byte \d+\)\); NaN and Infinity are no numbers in JSON"
    ):
        coco.read(path)


@pytest.mark.parametrize("key", ["segmentation", "unknown"])
def test_endless_nesting(tmp_path: Path, key: str) -> None:
    path = write_coco(tmp_path / "c.json", annotations=[{**ANNOTATION, key: "HERE"}])
    path.write_text(path.read_text().replace('"HERE"', "[" * 100_000 + "]" * 100_000))
    with pytest.raises(CocosegError, match=r"c\.json: "):
        coco.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CocosegError, match=r"nowhere\.json"):
        coco.read(tmp_path / "nowhere.json")
    with pytest.raises(CocosegError, match="can't be read"):
        coco.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "field `images`"),
        ({"annotations": None}, "field `annotations`"),
        ({"categories": None}, "field `categories`"),
        ({"images": {}}, r"`array`.*images"),
        ({"categories": "cat"}, r"`array`.*categories"),
        ({"images": []}, "no images"),
        ({"categories": [], "annotations": []}, "no categories"),
        # The message names an entry of the wrong form by its number.
        *[({"images": [IMAGE, without(IMAGE, key)]}, rf"{key}.*images\[1\]") for key in IMAGE],
        *[
            ({"annotations": [ANNOTATION, without(ANNOTATION, key)]}, rf"{key}.*annotations\[1\]")
            for key in ("image_id", "category_id")
        ],
        *[
            ({"categories": [CATEGORY, without(CATEGORY, key)]}, rf"{key}.*categories\[1\]")
            for key in CATEGORY
        ],
        ({"images": [{**IMAGE, "width": "8"}]}, r"images\[0\].*width"),
        ({"images": [{**IMAGE, "file_name": None}]}, r"images\[0\].*file_name"),
        ({"images": [{**IMAGE, "file_name": ""}]}, r"file_name.*images\[0\]"),
        ({"annotations": [ANNOTATION, {**ANNOTATION, "image_id": "1"}]}, r"annotations\[1\].*image_id"),
        ({"annotations": [{**ANNOTATION, "iscrowd": "no"}]}, r"annotations\[0\].*iscrowd"),
        ({"annotations": [ANNOTATION, 5]}, r"annotations\[1\]"),
        ({"annotations": [ANNOTATION, [1]]}, r"annotations\[1\]"),
        ({"categories": [CATEGORY, {"id": 3, "name": 3}]}, r"categories\[1\].*name"),
        # Ids that contradict each other.
        (
            {"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]},
            "id 1 occurs twice in 'images', for 'a.png' and 'b.png'",
        ),
        ({"categories": [CATEGORY, CATEGORY]}, "id 2 occurs twice in 'categories', for 'cat' and 'cat'"),
        ({"annotations": [ANNOTATION, {"image_id": 9, "category_id": 2}]}, "annotation no. 2 .*image 9"),
        ({"annotations": [{**ANNOTATION, "id": 77, "image_id": 9}]}, "annotation 77 .*image 9"),
        ({"annotations": [{**ANNOTATION, "id": 77, "category_id": 9}]}, "annotation 77 .*category 9"),
    ],
)
def test_bad_content(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CocosegError, match=rf"c\.json: .*{message}"):
        coco.read(write_coco(tmp_path / "c.json", **changes))


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "/",
        "./",
        "/etc/a.png",
        "..",
        "../a.png",
        "sub/../../a.png",
        "sub\\..\\..\\a.png",
        "C:\\a.png",
        "C:/a.png",
        "c:a.png",
        "\\a.png",
        "\\\\server\\share\\a.png",
        "a\0.png",
    ],
)
def test_file_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    path = write_coco(tmp_path / "c.json", images=[{**IMAGE, "file_name": name}])
    with pytest.raises(CocosegError, match="image 1 has the file_name"):
        coco.read(path)


@pytest.mark.parametrize("name", ["a.png", "sub/dir/a.png", "./a.png", "a..b.png", "ä ö.png", "..a/b"])
def test_file_names_inside(tmp_path: Path, name: str) -> None:
    path = write_coco(tmp_path / "c.json", images=[{**IMAGE, "file_name": name}])
    assert coco.read(path).images[0].file_name == name


@pytest.mark.parametrize("size", [(0, 6), (8, 0), (-8, 6), (-8, -6), (10**6, 10**6), (10**30, 1)])
def test_absurd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_coco(tmp_path / "c.json", images=[{**IMAGE, "width": size[0], "height": size[1]}])
    with pytest.raises(CocosegError, match="image 1 "):
        coco.read(path)


def test_write_subset_keeps_every_field(tmp_path: Path) -> None:
    content = {
        "info": {"year": 2017, "description": 'a "quoted" ä'},
        "licenses": [{"id": 1}],
        "images": [
            {**IMAGE, "id": i, "file_name": f"{i}.png", "coco_url": f"http://x/{i}", "tags": [{"deep": [i]}]}
            for i in (3, 1, 2)
        ],
        "annotations": [
            {
                **ANNOTATION,
                "id": 10 * image + number,
                "image_id": image,
                "area": 0.1 + number,
                "segmentation": segmentation,
                "attributes": {"occluded": False, "note": None},
            }
            for image in (1, 2, 3)
            for number, segmentation in enumerate([[[1, 1, 5, 1, 5, 4]], {"size": [6, 8], "counts": [48]}])
        ],
        "categories": [{**CATEGORY, "supercategory": "animal"}, {"id": 5, "name": "dog"}],
        "our own": {"x": [1, 2.50, None]},
    }
    source, target = tmp_path / "all.json", tmp_path / "sub" / "subset.json"
    source.write_text(json.dumps(content))
    file = coco.read(source)
    file.write_subset([image for image in file.images if image.id != 1], target)

    assert json.loads(target.read_bytes()) == {
        **content,
        "images": [content["images"][0], content["images"][2]],
        "annotations": content["annotations"][2:],
    }
    assert [image.id for image in coco.read(target).images] == [3, 2]
    reference = COCO(str(target))
    assert sorted(reference.imgs) == [2, 3]
    assert sorted(reference.anns) == [20, 21, 30, 31]
    assert sorted(reference.cats) == [2, 5]
