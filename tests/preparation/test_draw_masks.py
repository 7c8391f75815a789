import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from pycocotools.coco import COCO

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.draw_masks import create_segmentation_masks
from cocoseg.preparation.segmentations import LEFT_OUT
from conftest import write_coco

BOX = [[1, 1, 5, 1, 5, 4, 1, 4]]  # 5 x 4 pixels


def make_images(folder: Path, *names: str, size: tuple[int, int] = (8, 6)) -> list[dict[str, Any]]:
    """Write images of noise. Returns their entries in the annotation file."""
    rng = np.random.default_rng(0)
    entries = []
    for number, name in enumerate(names, start=1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        entries.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    return entries


def annotation(
    number: int, image: int, category: int, segmentation: Any = BOX, **more: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_masks_and_records(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", "b.png", "sub/dir/a.jpg", "none.png")
    annotations = [
        annotation(1, 1, 2),
        annotation(2, 1, 5, [[0, 0, 1, 0, 1, 1, 0, 1]]),
        annotation(3, 1, 5, None),
        annotation(4, 2, 2, [[]]),
        annotation(5, 2, 2, iscrowd=1),
    ]
    file = write_coco(tmp_path / "c.json", images=images, annotations=annotations)
    records = create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)

    assert [(record.image, record.mask) for record in records] == [
        ("b.png", "b_mask_cats_2_5.png"),
        ("sub/dir/a.jpg", "sub/dir/a_mask_cats_none.png"),
        ("none.png", "none_mask_cats_none.png"),
    ]
    assert [record.pixels for record in records] == [
        {0: 48 - 19 - 4, 1: 19, 2: 4},
        {0: 28, 255: 20},
        {0: 48},
    ]
    assert [record.warnings.get(LEFT_OUT) for record in records] == [[3], [4], None]
    assert files_of(tmp_path / "out").keys() == {record.mask for record in records}

    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:6] = 2
    expected[0:2, 0:2] = 5
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "out" / records[0].mask)), expected)
    ignored = np.asarray(PIL.Image.open(tmp_path / "out" / records[1].mask))
    np.testing.assert_array_equal(ignored, np.where(expected == 0, 0, 255) * (np.indices((6, 8)).min(0) > 0))


def test_settings_reach_the_masks(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", "a.png")
    annotations = [annotation(1, 1, 2), annotation(2, 1, 5, [[1, 1, 7, 1, 7, 5, 1, 5]], iscrowd=1)]
    file = write_coco(tmp_path / "c.json", images=images, annotations=annotations)

    def pixel_counts(**settings: Any) -> dict[int, int]:
        (record,) = create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", **settings, workers=1)
        pixels = np.asarray(PIL.Image.open(tmp_path / "out" / record.mask))
        counts = dict(zip(*map(np.ndarray.tolist, np.unique(pixels, return_counts=True)), strict=True))
        assert sorted(record.pixels.values()) == sorted(counts.values())
        return counts

    assert pixel_counts() == {0: 13, 2: 20, 255: 15}
    assert pixel_counts(crowd="skip") == {0: 28, 2: 20}
    assert pixel_counts(crowd="draw") == {0: 13, 5: 35}
    assert pixel_counts(crowd="draw", overlap="smallest") == {0: 13, 2: 20, 5: 15}
    assert pixel_counts(crowd="draw", overlap="ignore") == {0: 13, 5: 15, 255: 20}
    assert pixel_counts(crowd="skip", rasterizer="coco") == {0: 36, 2: 12}
    assert pixel_counts(encoding="x100") == {0: 13, 200: 20, 65535: 15}
    assert pixel_counts(categories=["dog"], crowd="draw") == {0: 13, 5: 35}
    assert pixel_counts(categories=[2], crowd="draw") == {0: 28, 2: 20}  # dogs are background


def test_two_workers_write_the_same_bytes(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocoseg.workers.CHUNK", 1)  # so that results arrive in any order
    results = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        file = shapes_root / "annotations" / "instances.json"
        results.append(
            (create_segmentation_masks(shapes_root / "images", file, out, workers=workers), files_of(out))
        )
    assert results[0] == results[1]
    records, files = results[0]
    assert [record.image for record in records] == [f"image_{i:03d}.jpg" for i in range(1, 25)]
    assert len(files) == 24


def test_shapes_are_drawn_as_they_were_painted(shapes_root: Path, tmp_path: Path) -> None:
    """The generator paints later classes over earlier ones; so must the mask, hole and crowd included."""
    reference = COCO(str(shapes_root / "annotations" / "instances.json"))
    file = Path(shapes_root / "annotations" / "instances.json")
    records = create_segmentation_masks(shapes_root / "images", file, tmp_path, workers=1)
    for record, image in zip(records, coco.read(file).images, strict=True):
        expected = paint_reference(reference, image.id, rasterizer="pillow", crowd="ignore")
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / record.mask)), expected)


# --- bad input


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlap": "?"},
        {"rasterizer": "?"},
        {"crowd": "?"},
        {"encoding": "?"},
        {"other": "ignored"},
        {"labels": "every"},
        {"labels": {"pet": "cat"}},
    ],
)
def test_unknown_choices_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    images = make_images(tmp_path / "in", "a.png")
    file = write_coco(tmp_path / "c.json", images=images, annotations=[annotation(1, 1, 2)])
    with pytest.raises(CocosegError, match=next(iter(wrong))):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1, **wrong)


def damage(path: Path, kind: str) -> None:
    if kind == "truncated":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image")
    elif kind == "size":
        PIL.Image.new("RGB", (65, 48)).save(path)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "not a readable image"),
        ("text", "not a readable image"),
        ("size", "the image is 65x48 .*says 64x48"),
    ],
)
def test_bad_image(tmp_path: Path, kind: str, message: str, workers: int) -> None:
    images = make_images(tmp_path / "in", "a.jpg", "sub/b.jpg", "c.jpg", size=(64, 48))
    damage(tmp_path / "in" / "sub" / "b.jpg", kind)
    file = write_coco(tmp_path / "c.json", images=images, annotations=[])
    with pytest.raises(CocosegError, match=rf"in/sub/b\.jpg: {message}"):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=workers)


def test_missing_images(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", "a.jpg", "sub/b.jpg", "c.jpg")
    file = write_coco(tmp_path / "c.json", images=images, annotations=[])
    damage(tmp_path / "in" / "a.jpg", "empty")
    with pytest.raises(
        CocosegError, match=r"1 of 3 .* missing, .*in/a\.jpg \(an empty file\); set image_dir"
    ):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)
    (tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / "a.x.jpg")
    make_images(tmp_path / "in", "A.JPG")
    with pytest.raises(CocosegError, match=r"in/A\.JPG for one: file_names='similar' reads"):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)
    records = create_segmentation_masks(
        tmp_path / "in", file, tmp_path / "out", file_names="similar", workers=1
    )
    assert [record.image for record in records] == ["A.JPG", "sub/b.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("first", "second"), [("a.png", "a.jpg"), ("sub/a.x.png", "sub/a.x.jpg"), ("a.png", "./a.jpg")]
)
def test_same_stem(tmp_path: Path, first: str, second: str) -> None:
    images = make_images(tmp_path / "in", first, second)
    file = write_coco(tmp_path / "c.json", images=images, annotations=[])
    with pytest.raises(CocosegError, match=rf"the masks of {first} .image 1. and {second} .image 2. would"):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.png", "b.png", "a.png"], r"a\.png is listed twice \(images 1 and 3\)"),
        (["s/a.png", "./s//a.png", "s/a.png"], r"s/a\.png is listed twice \(images 1 and 2\)"),
    ],
)
def test_a_file_listed_twice(tmp_path: Path, names: list[str], words: str) -> None:
    """Some tools write an entry for each annotation, others merge files."""
    images = make_images(tmp_path / "in", *names)
    file = write_coco(tmp_path / "c.json", images=images, annotations=[])
    with pytest.raises(CocosegError, match=rf"c\.json: {words}; list it once"):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_name_too_long_for_a_mask(tmp_path: Path) -> None:
    """The image's own name is allowed; the mask's, which is longer, is not."""
    name = "x" * 240 + ".png"
    file = write_coco(tmp_path / "c.json", images=make_images(tmp_path / "in", name), annotations=[])
    with pytest.raises(CocosegError, match=r"x{240}.*too long"):
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)


def test_several_errors_at_once(tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", *(f"{i}.png" for i in range(1, 6)))
    annotations = [annotation(70 + i, i, 2, [[1, 1, 5, 1, 5, 1e6]]) for i in range(1, 6)]
    file = write_coco(tmp_path / "c.json", images=images, annotations=annotations)
    with pytest.raises(CocosegError) as caught:
        create_segmentation_masks(tmp_path / "in", file, tmp_path / "out", workers=1)
    message = str(caught.value)
    assert [f"{file}: annotation {i}:" in message for i in range(71, 76)] == 3 * [True] + 2 * [False]
    assert message.endswith("(and 2 more)")


# --- photographs of COCO


def paint_reference(reference: COCO, image_id: int, *, rasterizer: str, crowd: str) -> np.ndarray:
    """Category ids by np.maximum over one canvas per polygon or RLE; 255 in crowds beneath all objects."""
    image = reference.imgs[image_id]
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    ignored = np.zeros(mask.shape, bool)
    for a in reference.imgToAnns[image_id]:
        if rasterizer == "coco" or isinstance(a["segmentation"], dict):
            regions = [reference.annToMask(a)]
        else:
            regions = []
            for part in a["segmentation"]:
                canvas = PIL.Image.new("L", (image["width"], image["height"]))
                PIL.ImageDraw.Draw(canvas).polygon(part, fill=1)
                regions.append(np.array(canvas))
        for region in regions:
            if not a["iscrowd"] or crowd == "draw":
                mask = np.maximum(mask, region * a["category_id"])
            elif crowd == "ignore":
                ignored |= region > 0
    mask[ignored & (mask == 0)] = 255
    return mask


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("rasterizer", "crowd"), [("coco", "skip"), ("coco", "ignore"), ("pillow", "draw"), ("pillow", "ignore")]
)
def test_every_mask_of_coco(real_data: Path, tmp_path: Path, rasterizer: str, crowd: str) -> None:
    file = real_data / "coco" / "annotations" / "instances_train2017.json"
    records = create_segmentation_masks(
        real_data / "coco" / "train2017", file, tmp_path, rasterizer=rasterizer, crowd=crowd, workers=1
    )
    reference = COCO(str(file))
    ids = {image["file_name"]: image_id for image_id, image in reference.imgs.items()}
    assert len(records) == len(ids) > 0
    assert all(not record.warnings for record in records)
    ignored = 0
    for record in records:
        expected = paint_reference(reference, ids[record.image], rasterizer=rasterizer, crowd=crowd)
        pixels = np.asarray(PIL.Image.open(tmp_path / record.mask))
        np.testing.assert_array_equal(pixels, expected, err_msg=record.image)
        values, counts = np.unique(expected, return_counts=True)
        assert sorted(record.pixels.values()) == sorted(counts.tolist())
        visible = sorted(set(values.tolist()) - {0, 255})
        stem = record.mask.removesuffix(".png")
        assert stem.endswith("_mask_cats_" + ("_".join(map(str, visible)) or "none"))
        ignored += int((pixels == 255).sum())
    assert (ignored > 0) == (crowd == "ignore")


@pytest.mark.real_data
def test_void_of_camvid_is_ignored(real_data: Path, tmp_path: Path) -> None:
    """Each pixel of CamVid belongs to one RLE, so the mask must show all of them, void as 255."""
    file = real_data / "camvid" / "annotations" / "instances_val.json"
    records = create_segmentation_masks(real_data / "camvid" / "val", file, tmp_path, workers=1)
    content = json.loads(file.read_bytes())
    reference = COCO(str(file))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for record in records[::10]:
        pixels = np.asarray(PIL.Image.open(tmp_path / record.mask))
        for a in reference.imgToAnns[ids[record.image]]:
            value = 255 if a["iscrowd"] else a["category_id"]
            np.testing.assert_array_equal(pixels == value, reference.annToMask(a) == 1)
