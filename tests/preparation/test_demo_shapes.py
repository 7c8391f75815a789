import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools.coco import COCO

from cocoseg.errors import CocosegError
from cocoseg.preparation.demo_shapes import draw_shapes, is_drawn


def content_of(root: Path) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def instances(shapes_root: Path) -> dict[str, Any]:
    return json.loads((shapes_root / "annotations" / "instances.json").read_bytes())


@pytest.fixture(scope="module")
def reference(shapes_root: Path) -> COCO:
    return COCO(str(shapes_root / "annotations" / "instances.json"))


def regions(reference: COCO, image_id: int, *, crowd: bool = False) -> list[np.ndarray]:
    annotations = reference.imgToAnns[image_id]
    return [reference.annToMask(a).astype(bool) for a in annotations if a["iscrowd"] == crowd]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        draw_shapes(tmp_path / name, images=10, seed=seed)
    first = content_of(tmp_path / "a")
    assert len(first) == 11
    assert content_of(tmp_path / "b") == first
    other = content_of(tmp_path / "c")
    assert other.keys() == first.keys()
    assert not any(other[name] == first[name] for name in first)


def test_drawn_anew_with_other_settings(tmp_path: Path) -> None:
    draw_shapes(tmp_path / "a", images=5, seed=5)
    draw_shapes(tmp_path / "a", images=3, seed=6)
    draw_shapes(tmp_path / "b", images=3, seed=6)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


def test_photographs_of_others_are_not_deleted(tmp_path: Path) -> None:
    """`data=shapes data.root=<a data set of one's own>` is a slip that must not cost the images."""
    photo, annotations = tmp_path / "images" / "mine.jpg", tmp_path / "annotations" / "instances.json"
    for path in (photo, annotations):
        path.parent.mkdir()
        path.write_text("{}")
    with contextlib.suppress(CocosegError):
        draw_shapes(tmp_path, images=2, seed=0)
    assert photo.exists()
    assert annotations.read_text() == "{}"


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "shapes").write_text("mine")
    with pytest.raises(CocosegError, match=r"data\.root: .*shapes"):
        draw_shapes(tmp_path / "shapes", images=2, seed=0)
    assert (tmp_path / "shapes").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]"])
def test_damaged_annotation_file_is_drawn_anew(tmp_path: Path, content: bytes) -> None:
    draw_shapes(tmp_path, images=2, seed=0)
    before = content_of(tmp_path)
    (tmp_path / "annotations" / "instances.json").write_bytes(content)
    draw_shapes(tmp_path, images=2, seed=0)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("name", ["photo.jpg", ".ssh/id", ".DS_Store"])
def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(CocosegError, match=r"^data\.root: .* are not the built-in shapes"):
        draw_shapes(tmp_path, images=2, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == [name.partition("/")[0]]


def test_drawn_again_without_the_earlier_files(tmp_path: Path) -> None:
    draw_shapes(tmp_path, images=3, seed=0)
    (tmp_path / "images/mine.jpg").write_bytes(b"mine")
    (tmp_path / "images/image_001_mine.jpg").write_bytes(b"mine")
    assert is_drawn(tmp_path, images=3, seed=0)
    assert not is_drawn(tmp_path, images=2, seed=0)
    assert not is_drawn(tmp_path / "images", images=3, seed=0)
    draw_shapes(tmp_path, images=2, seed=0)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        *("image_001.jpg", "image_002.jpg", "image_001_mine.jpg", "mine.jpg"),
    }
    assert (tmp_path / "images/mine.jpg").read_bytes() == b"mine"


def test_images_are_as_listed(shapes_root: Path, instances: dict[str, Any]) -> None:
    assert len(instances["images"]) == 24
    modes, sizes = set(), set()
    for listed in instances["images"]:
        with PIL.Image.open(shapes_root / "images" / listed["file_name"]) as image:
            assert image.size == (listed["width"], listed["height"])
            modes.add(image.mode)
            sizes.add(image.size)
    assert modes == {"RGB", "L"}
    assert len(sizes) >= 3
    assert len(list((shapes_root / "images").iterdir())) == 24


def test_kinds_of_segmentation(instances: dict[str, Any]) -> None:
    found = set()
    for annotation in instances["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            found.add("parts" if len(segmentation) > 1 else "polygon")
        else:
            found.add((type(segmentation["counts"]), annotation["iscrowd"]))
    assert found == {"polygon", "parts", (list, 0), (str, 1)}


def test_a_hole(instances: dict[str, Any], reference: COCO) -> None:
    def has_hole(annotation: dict[str, Any]) -> bool:
        """Is there background with foreground on all four sides, which a whole disc has nowhere?"""
        region = reference.annToMask(annotation)
        before = [np.maximum.accumulate(region, axis) for axis in (0, 1)]
        after = [np.flip(np.maximum.accumulate(np.flip(region, axis), axis), axis) for axis in (0, 1)]
        return bool(np.any(np.all([*before, *after, region == 0], axis=0)))

    rings = [a for a in instances["annotations"] if not a["iscrowd"] and isinstance(a["segmentation"], dict)]
    assert any(map(has_hole, rings))


def test_crowd_regions_with_instances_on_them(reference: COCO) -> None:
    crowds = [i for i in reference.imgs if regions(reference, i, crowd=True)]
    assert crowds
    for image_id in crowds:
        assert regions(reference, image_id, crowd=True)[0].any()
        assert regions(reference, image_id)


def test_nothing_is_annotated_outside_its_image(instances: dict[str, Any]) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in instances["images"]}
    polygons = 0
    for annotation in instances["annotations"]:
        width, height = sizes[annotation["image_id"]]
        parts = annotation["segmentation"] if isinstance(annotation["segmentation"], list) else []
        assert parts or isinstance(annotation["segmentation"], dict)
        for part in parts:
            polygons += 1
            assert min(part) >= 0
            assert max(part[0::2]) <= width
            assert max(part[1::2]) <= height
            assert len(part) >= 6
    assert polygons > 20
