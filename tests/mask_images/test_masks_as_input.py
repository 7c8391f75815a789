"""Training and evaluation with mask images: after the preparation they are masks like any others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools.coco import COCO

from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.mask_images.pairs import MaskPair, find_pairs
from cocoseg.preparation.prepared_folder import read_index
from conftest import run_here
from tiny import TINY_RUN


def draw_pairs(root: Path, count: int, seed: int = 0) -> None:
    """Write `images/<n>.png`, a bright square each, and `masks/<n>_mask.png`, 1 or 2 on the square."""
    generator = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        values = np.zeros((32, 32), dtype=np.uint8)
        top, left = generator.integers(0, 16, 2)
        values[top : top + 16, left : left + 16] = 1 + number % 2
        pixels[values > 0, number % 2] += 120
        PIL.Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        PIL.Image.fromarray(values).save(root / "masks" / f"{number}_mask.png")


def test_training_evaluation_and_from_run(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 8)
    draw_pairs(tmp_path / "test", 4, seed=1)
    data = ("data=masks", "data.images=images", "data.masks=masks", "data.classes=[background,cat,dog]")
    first = run_here("train", *data, *TINY_RUN, "trainer.max_steps=2", "run_dir=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert set(json.loads((tmp_path / "first" / "metrics.json").read_text())["iou"]) == {
        "background",
        "cat",
        "dog",
    }
    again = run_here("prepare", "from_run=first", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "prepared already, nothing changed" in again.stdout
    model = "checkpoint=first/segmentation_model.pth"
    own = run_here("evaluate", model, "run_dir=own", cwd=tmp_path)
    assert own.returncode == 0, own.stderr
    places = ("data=masks", "data.images=test/images", "data.masks=test/masks", data[-1], "split=all")
    other = run_here("evaluate", model, *places, "run_dir=other", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert json.loads((tmp_path / "other" / "metrics.json").read_text())["images"] == 4
    classes = "data.classes=[background,cat,cow]"
    refused = run_here("evaluate", model, *places[:3], classes, "split=all", "run_dir=refused", cwd=tmp_path)
    assert refused.returncode == 2
    assert "class 2 is" in refused.stderr


def test_data_module_takes_folders(tmp_path: Path) -> None:
    draw_pairs(tmp_path, 6)
    folder = tmp_path / "prepared"
    data = SegmentationDataModule(
        images=tmp_path / "images",
        masks=tmp_path / "masks",
        prepared_dir=folder,
        image_size=[16, 16],
        val_fraction=0.5,
    )
    assert data.labels.names == ["background", "1", "2"]
    image, mask = SegmentationDataset(folder, tmp_path / "images", (32, 32))[0]
    assert image.shape == (3, 32, 32)
    np.testing.assert_array_equal(mask.numpy(), np.asarray(PIL.Image.open(tmp_path / "masks" / "0_mask.png")))
    with pytest.raises(CocosegError, match=r"masks\.overlap"):
        SegmentationDataModule(images=tmp_path / "images", annotations="c.json", masks={"overlap": "no"})


def test_a_training_looks_at_the_files_of_a_prepared_set_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_pairs(tmp_path, 6)
    settings = {"images": tmp_path / "images", "masks": tmp_path / "masks", "val_fraction": 0.5}
    sizes = {"image_size": [16, 16], "cache_size": [32, 32]}  # the set is opened at both
    looks = []

    def find(*places: Any) -> list[MaskPair]:
        looks.append(places[-1])
        return find_pairs(*places)

    monkeypatch.setattr("cocoseg.preparation.prepared_folder.find_pairs", find)
    for _ in range(2):  # it is prepared by the first
        looks.clear()
        data = SegmentationDataModule(prepared_dir=tmp_path / "prepared", **settings, **sizes)
        data.prepare_data()
        data.setup("fit")
        assert looks == ["train"]


def write_camvid(camvid: Path, root: Path, split: str, count: int) -> list[str]:
    """Write images of CamVid as a COCO file and as a folder of masks. Returns settings of the latter."""
    content = json.loads((camvid / "annotations" / f"instances_{split}.json").read_bytes())
    content["images"] = content["images"][:count]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    file = root / f"{split}.json"
    file.write_text(json.dumps(content))
    reference = COCO(str(file))
    for folder in (split, f"{split}_masks"):
        (root / folder).mkdir()
    for image in content["images"]:
        (root / split / image["file_name"]).symlink_to(camvid / split / image["file_name"])
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for a in reference.imgToAnns[image["id"]]:
            mask[reference.annToMask(a) == 1] = 255 if a["iscrowd"] else a["category_id"]
        PIL.Image.fromarray(mask).save(root / f"{split}_masks" / f"{Path(image['file_name']).stem}.png")
    names = [f"{{name: {category['name']}, id: {category['id']}}}" for category in content["categories"]]
    return [f"data.classes=[{','.join(names)}]"]


@pytest.mark.real_data
def test_camvid_is_the_same_as_masks_and_as_coco(real_data: Path, tmp_path: Path) -> None:
    write_camvid(real_data / "camvid", tmp_path, "val", 8)
    classes = write_camvid(real_data / "camvid", tmp_path, "train", 24)
    places = {
        "coco": ("data=custom", "data.annotations=train.json", "data.val_annotations=val.json"),
        "masks": ("data=masks", "data.masks=train_masks", "data.val_masks=val_masks", *classes),
    }
    scores, sets = {}, {}
    for name, own in places.items():
        common = ("data.images=train", "data.val_images=val", f"data.prepared_dir=prepared_{name}")
        settings = (*own, *common, *TINY_RUN, "trainer.max_steps=6", f"run_dir={name}")
        run = run_here("train", *settings, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        scores[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        folders = [tmp_path / f"prepared_{name}", tmp_path / f"prepared_{name}" / "val"]
        sets[name] = {
            (folder.name == "val", pair.mask): (folder / pair.mask).read_bytes()
            for folder in folders
            for pair in read_index(folder).pairs
        }
    assert len(sets["masks"]) == 32
    assert sets["masks"] == sets["coco"]
    assert scores["masks"]["iou"] == scores["coco"]["iou"]
    assert scores["masks"]["miou"] == scores["coco"]["miou"]
