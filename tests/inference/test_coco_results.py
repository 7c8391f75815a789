import json
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
from pycocotools.coco import COCO

from cocoseg.inference.coco_results import entries_of, listed_images
from cocoseg.labels import LabelClass, LabelMap
from cocoseg.preparation.coco_file import Image
from conftest import write_coco
from tiny import LABELS

MASK = np.array([[0, 1, 1], [2, 2, 1]], dtype=np.uint8)


def test_pycocotools_reads_the_results(tmp_path):
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:3, 2:7] = 1
    mask[4:, :3] = 2
    annotations = write_coco(tmp_path / "a.json")
    entries = entries_of(mask, 1, "a.png", LABELS)
    (tmp_path / "r.json").write_text(json.dumps(entries))

    with redirect_stdout(StringIO()):
        coco = COCO(annotations)
        results = coco.loadRes(str(tmp_path / "r.json"))

    found = results.loadAnns(results.getAnnIds(imgIds=[1]))
    assert len(found) == 2
    for one, index in zip(found, (1, 2), strict=True):
        assert one["category_id"] == {1: 2, 2: 5}[index]
        np.testing.assert_array_equal(results.annToMask(one), mask == index)


def test_background_and_ignored_are_left_out():
    assert entries_of(np.array([[0, 255]], dtype=np.uint8), 1, "a.png", LABELS) == []


def test_grouped_categories_have_class_indices():
    groups = LabelMap((LABELS.classes[0], LabelClass((2, 5), "pet", (1, 2, 3)), LABELS.classes[2]))
    assert [entry["category_id"] for entry in entries_of(MASK, 1, "a.png", groups)] == [1, 2]


def test_images_are_found_in_an_annotation_file_by_path_or_name():
    def image(id: int, name: str) -> Image:
        return Image(id=id, file_name=name, width=1, height=1)

    images = [image(7, "train/a.jpg"), image(8, "val/a.jpg"), image(9, "val/b.jpg")]
    found = listed_images(["val/a.jpg", "b.jpg", "a.jpg", "c.jpg"], images)
    assert {name: image.id for name, image in found.items()} == {"val/a.jpg": 8, "b.jpg": 9}
