"""Predictions as a COCO data set, and the masks that are drawn from it."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask
from test_predict_folder import drawn, forbidden, mask_of, run, stripes

from cocoseg.config import MasksConfig, PredictConfig
from cocoseg.config_cross_checks import check_predict
from cocoseg.errors import CocosegError
from cocoseg.files import save_png
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.inference import coco_dataset as dataset_module
from cocoseg.inference import pipeline as pipeline_module
from cocoseg.inference.coco_dataset import annotations_of
from cocoseg.inference.find_images import ImageFile
from cocoseg.inference.manifest import Entry
from cocoseg.inference.results import Results
from cocoseg.labels import IGNORE_INDEX, LabelClass, LabelMap
from cocoseg.preparation import coco_file
from cocoseg.preparation.draw_masks import create_segmentation_masks
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, parse_layers
from tiny import LABELS

IDS = [0, 2, 5]
KINDS = ("rle", "polygon")


def annotate(mask: np.ndarray, confidence: np.ndarray, **settings: Any) -> list[dict[str, Any]]:
    """Annotations of a mask, as JSON returns them."""
    config = PredictConfig(**{"coco_dataset": "rle", **settings})
    return msgspec.json.decode(msgspec.json.encode(list(annotations_of(mask, confidence, IDS, config))))


def painted(annotations: list[dict[str, Any]], shape: tuple[int, int], **rules: Any) -> np.ndarray:
    instances = [
        Instance(
            number,
            IDS.index(one["category_id"]),
            bool(one["iscrowd"]),
            msgspec.json.encode(one["segmentation"]),
        )
        for number, one in enumerate(annotations)
    ]
    layers = parse_layers(instances, *shape, "ignore")
    assert layers.warnings() == {}
    return paint(layers, MasksConfig(**rules))


def random_masks(count: int) -> list[np.ndarray]:
    """Masks of background, two classes and ignored pixels, many with holes and single pixels."""
    generator = np.random.default_rng(0)
    values, masks = np.array([0, 1, 2, IGNORE_INDEX], np.uint8), []
    for _ in range(count):
        height, width, scale = generator.integers(1, (12, 12, 4))
        shares = generator.dirichlet((1, 1, 1, 0.3))
        small = generator.choice(values, (height, width), p=shares)
        masks.append(np.kron(small, np.ones((scale, scale), np.uint8)))
    return masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rules", [{}, {"overlap": "smallest"}, {"rasterizer": "coco"}], ids=str)
def test_masks_drawn_from_the_annotations_are_the_same(kind, rules):
    for mask in random_masks(40):
        annotations = annotate(mask, np.full_like(mask, 255), coco_dataset=kind)
        np.testing.assert_array_equal(painted(annotations, mask.shape, **rules), mask)


def test_annotations_of_a_small_mask():
    mask = np.array([[0, 1, 1, 0], [1, 1, 0, 2], [0, 0, 0, 255]], np.uint8)
    confidence = np.array([[0, 255, 204, 0], [153, 204, 0, 51], [0, 0, 0, 102]], np.uint8)
    annotations = annotate(mask, confidence)
    for one in annotations:
        assert one["segmentation"].pop("size") == [3, 4]
    assert annotations == [
        {
            "category_id": 2,
            "iscrowd": 0,
            "score": 0.8,  # the mean: (1 + 0.8 + 0.6 + 0.8) / 4
            "area": 4,
            "bbox": [0, 0, 3, 2],
            "segmentation": {"counts": annotations[0]["segmentation"]["counts"]},
        },
        {
            "category_id": 5,
            "iscrowd": 0,
            "score": 0.2,
            "area": 1,
            "bbox": [3, 1, 1, 1],
            "segmentation": {"counts": annotations[1]["segmentation"]["counts"]},
        },
        {
            "category_id": 2,  # no meaning: the region is ignored
            "iscrowd": 1,
            "score": 0.4,
            "area": 1,
            "bbox": [3, 2, 1, 1],
            "segmentation": {"counts": annotations[2]["segmentation"]["counts"]},
        },
    ]
    for one, value in zip(annotations, (1, 2, 255), strict=True):
        encoded = coco_mask.encode(np.asfortranarray(mask == value))
        assert one["segmentation"]["counts"] == encoded["counts"].decode()


@pytest.mark.parametrize("kind", KINDS)
def test_small_and_unsure_regions_are_ignored_or_background(kind):
    mask = np.array([[1, 1, 0, 2, 0, 2, 2], [1, 1, 0, 0, 0, 2, 2]], np.uint8)
    confidence = np.where(np.arange(7) < 5, 255, 100).astype(np.uint8).repeat(2).reshape(7, 2).T
    settings = {"coco_dataset": kind, "min_score": 0.5, "min_area": 2}
    ignored, left_out = mask.copy(), mask.copy()
    ignored[mask == 2], left_out[mask == 2] = 255, 0
    for below, expected in (("ignore", ignored), ("background", left_out)):
        annotations = annotate(mask, confidence, **settings, below=below)
        np.testing.assert_array_equal(painted(annotations, mask.shape), expected)
    assert len(annotate(mask, confidence, min_score=100 / 255, min_area=1)) == 3
    np.testing.assert_array_equal(painted(annotate(mask, confidence, min_score=100 / 255), mask.shape), mask)
    areas = annotate(mask, confidence, min_score=100 / 255, min_area=4, below="ignore")
    assert [(one["area"], one["iscrowd"]) for one in areas] == [(4, 0), (1, 1), (4, 0)]
    (void,) = annotate(np.array([[0, 255]], np.uint8), np.zeros((1, 2), np.uint8), below="background")
    assert void["iscrowd"] == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of random masks: one in a subfolder, one turned by its EXIF data, one without objects."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    generator = np.random.default_rng(0)
    for name in ("a.png", "deep/b.png"):
        small = generator.integers(0, 3, (10, 15))
        drawn(small.repeat(3, 0).repeat(3, 1)).save(folder / name)
    drawn(stripes()).save(folder / "turned.png", exif=exif)
    drawn(np.zeros((20, 30), int)).save(folder / "empty.png")
    return folder


def content_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "coco_dataset.json").read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_become_the_same_masks(tmp_path, photos, kind, caplog):
    caplog.set_level("INFO")
    output = run(tmp_path, photos, coco_dataset=kind, scale=1, overlay=False, gallery=False)

    records = create_segmentation_masks(photos, output / "coco_dataset.json", tmp_path / "drawn", workers=1)

    content = content_of(output)
    assert content["categories"] == [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    assert content["images"] == [
        {"id": 1, "file_name": "a.png", "width": 45, "height": 30},
        {"id": 2, "file_name": "deep/b.png", "width": 45, "height": 30},
        {"id": 3, "file_name": "empty.png", "width": 30, "height": 20},
        {"id": 4, "file_name": "turned.png", "width": 60, "height": 90},
    ]
    annotations = content["annotations"]
    assert [one["id"] for one in annotations] == list(range(1, len(annotations) + 1))
    assert {one["image_id"] for one in annotations} == {1, 2, 4}
    assert {one["score"] for one in annotations} == {0.9765, 0.9843}  # 249 / 255 and 251 / 255
    assert f"coco_dataset.json ({len(annotations)} regions)" in caplog.text
    for record in records:
        assert (record.warnings, record.doubt) == ({}, None)
        mask = MaskEncoding.load(output).read(tmp_path / "drawn" / record.mask, record.orientation)
        name = record.image.removesuffix(".png")
        np.testing.assert_array_equal(np.array([0, 2, 5])[mask], mask_of(output, name))


def test_another_threshold_predicts_nothing_again(tmp_path, photos, monkeypatch):
    settings = {"scale": 1, "overlay": False, "gallery": False}
    run(tmp_path, photos, **settings)
    output = run(tmp_path, photos, coco_dataset="rle", **settings)  # all again, for their confidence
    first = content_of(output)["annotations"]
    monkeypatch.setattr(pipeline_module, "read_with_faults", forbidden)
    run(tmp_path, photos, coco_dataset="rle", min_score=0.98, **settings)
    again = content_of(output)["annotations"]
    assert [{**one, "iscrowd": int(one["category_id"] == 2)} for one in first] == again


def test_the_confidence_of_a_replaced_image_is_deleted(tmp_path, photos):
    settings = {"scale": 1, "overlay": False, "gallery": False}
    output = run(tmp_path, photos, coco_dataset="rle", **settings)
    drawn(stripes(30, 45)).convert("RGBA").save(photos / "a.png")
    run(tmp_path, photos, **settings)
    assert not (output / "confidence/a.png").exists()
    assert (output / "confidence/deep/b.png").exists()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ((LABELS.classes[1], LabelClass((5, 6), "pets", (0, 0, 255))), [1, 2]),
        ((LabelClass((0,), "cat", (255, 0, 0)), LABELS.classes[2]), [1, 2]),
        (LABELS.classes[1:], [2, 5]),
    ],
    ids=["of groups", "with zero", "as they are"],
)
def test_category_ids_are_class_indices_where_they_must_be(tmp_path, classes, expected):
    image = ImageFile(tmp_path / "a.png", "a.png")
    encoding = MaskEncoding("palette", LabelMap((LABELS.classes[0], *classes)))
    results = Results(tmp_path, encoding, False, False, True)
    entry = Entry("a.png", "a", 1, 1, 1, 3)
    encoding.write(np.array([[1, 0, 2]], np.uint8), results.path("a"))
    save_png(results.path("a", "confidence"), PIL.Image.new("L", (3, 1), 255))
    config = PredictConfig(coco_dataset="rle")
    dataset_module.write_coco_dataset({7: image}, {"a": entry}, results, config)
    content = content_of(tmp_path)
    assert [category["id"] for category in content["categories"]] == expected
    assert [(one["image_id"], one["category_id"]) for one in content["annotations"]] == [
        (7, expected[0]),
        (7, expected[1]),
    ]


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_a_damaged_confidence_file_is_a_one_line_error(tmp_path, photos, damage):
    settings = {"coco_dataset": "rle", "scale": 1, "overlay": False, "gallery": False}
    output = run(tmp_path, photos, **settings)
    before = (output / "coco_dataset.json").read_bytes()
    path = output / "confidence/a.png"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    else:
        PIL.Image.new("L", (3, 3)).save(path)
    with pytest.raises(CocosegError, match=r"confidence/a\.png: .*delete it and run predict\.py again"):
        run(tmp_path, photos, **settings)
    assert (output / "coco_dataset.json").read_bytes() == before
    path.unlink()
    run(tmp_path, photos, **settings)
    assert (output / "coco_dataset.json").read_bytes() == before


def test_thresholds_without_a_data_set_are_refused(tmp_path):
    (tmp_path / "model.pth").touch()
    config = PredictConfig(checkpoint=str(tmp_path / "model.pth"), input="photos", min_score=0.5)
    with pytest.raises(CocosegError, match=r"min_score and min_area need coco_dataset=rle or coco_d"):
        check_predict(config)


@pytest.mark.real_data
def test_masks_of_camvid_are_the_same_after_the_data_set(real_data: Path, tmp_path: Path) -> None:
    """CamVid's own masks with their void, 101 images of 11 classes."""
    images, file = real_data / "camvid/val", real_data / "camvid/annotations/instances_val.json"
    records = create_segmentation_masks(images, file, tmp_path / "first", workers=1)
    encoding = MaskEncoding("palette", LabelMap.from_categories(coco_file.read(file).categories))
    results = Results(tmp_path, encoding, False, False, True)
    listed, entries = {}, {}
    for number, record in enumerate(records, start=1):
        image = ImageFile(images / record.image, record.image)
        mask, name = encoding.read(tmp_path / "first" / record.mask), image.result_name
        encoding.write(mask, results.path(name))
        save_png(results.path(name, "confidence"), PIL.Image.fromarray(mask))
        listed[number], entries[name] = image, Entry(record.image, name, 1, 1, *mask.shape)
    for kind in KINDS:
        dataset_module.write_coco_dataset(listed, entries, results, PredictConfig(coco_dataset=kind))
        again = create_segmentation_masks(images, tmp_path / "coco_dataset.json", tmp_path / kind, workers=1)
        for before, after in zip(records, again, strict=True):
            first, last = tmp_path / "first" / before.mask, tmp_path / kind / after.mask
            assert first.read_bytes() == last.read_bytes()
