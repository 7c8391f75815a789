"""Annotation files with seeded faults: a line that says what is wrong, or masks as pycocotools draws them."""

import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask

import mutants
from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.preparation.prepare import prepare

COUNT = 400
HEIGHT, WIDTH = 30, 40
NESTED: list[Any] = []
for _ in range(200):
    NESTED = [NESTED]
ODD = [
    *(None, True, -1, 0, 1, 2, 3, 255, 2**31, 2**63, 10**30, 0.5, -7.5, 1e5, -1e5, 1e308, float("nan")),
    *(
        "",
        "1",
        "a.png",
        "../x.png",
        "/etc/hostname",
        "\x1b[31m",
        "=1+1",
        "\u202e",
        "\ud800",
        "x" * 300,
        "~" * 50,
    ),
    *([], {}, [[]], [0.5], [1, 2, 3, 4, 5, 6], [[1e5, -1e5] * 50], [[5, 5] * 9], NESTED),
    *(
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
        {"size": [HEIGHT, WIDTH], "counts": [0, 0, 0, 1200]},
    ),
    *({"size": [10**9, 10**9], "counts": "0"}, {"size": [HEIGHT, WIDTH], "counts": "o" * 3000}),
]


NUMBERS = [-1e5, -7.5, -1, -0.1, 0, 0.1, 0.5, 1, 3, 7, 12.3, 29.9, 30, 39.9, 40, 41.5, 1e3, 99999.9]


def valid(rng: random.Random) -> dict[str, Any]:
    """Three images with objects of every kind."""
    shapes: list[Any] = [
        [[1.5, 2, 20, 3.1, 18.2, 25, 4, 22]],
        [[0, 0, 9, 0, 9, 9], [-5, 20, 45, 20.5, 45, 33, -5, 33]],
        [30, 5, 38, 5, 34, 12],
        {"size": [HEIGHT, WIDTH], "counts": [35, 10, 20, 10, HEIGHT * WIDTH - 75]},
        {"size": [HEIGHT, WIDTH], "counts": _compressed([[10, 10, 35, 12, 30, 28, 8, 24]])},
    ]
    images = [
        {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT, "coco_url": f"http://a/{i}"}
        for i in range(3)
    ]
    annotations = [
        {
            "id": number,
            "image_id": rng.randrange(3),
            "category_id": rng.choice((3, 7)),
            "iscrowd": int(rng.random() < 0.2),
            "area": 50.0,
            "bbox": [1, 2, 3, 4],
            "segmentation": rng.choice(shapes),
        }
        for number in range(1, 8)
    ]
    categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _compressed(parts: list[list[float]]) -> str:
    return coco_mask.merge(coco_mask.frPyObjects(parts, HEIGHT, WIDTH))["counts"].decode()


def use(folder: Path, file: Path, rules: MasksConfig) -> None:
    data = DataConfig(
        images=str(folder / "images"),
        annotations=str(file),
        prepared_dir=str(folder / "prepared"),
        subset=SubsetConfig(size=None, keep_empty=True),
    )
    prepare(Config(data=data, masks=rules, prepare=PrepareConfig(workers=1)))
    encoding = MaskEncoding.load(folder / "prepared")
    content = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    pairs = json.loads((folder / "prepared/index.json").read_bytes())["pairs"]
    sizes = {image["file_name"]: image["id"] for image in content["images"]}
    for pair in pairs:
        drawn = encoding.read(folder / "prepared" / pair["mask"])
        if rules.rasterizer == "coco" and rules.overlap == "max":
            mine = [a for a in content["annotations"] if a["image_id"] == sizes[pair["image"]]]
            expected = reference(mine, encoding.labels.index_of, rules.crowd)
            np.testing.assert_array_equal(drawn, expected)


def reference(annotations: list[Any], index_of: dict[int, int], crowd: str) -> np.ndarray:
    ignored = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for a in annotations:
        if a.get("iscrowd") and crowd == "skip":
            continue
        found = a.get("segmentation")
        if isinstance(found, list):
            parts = found if not found or isinstance(found[0], list) else [found]
            parts = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
            found = coco_mask.merge(coco_mask.frPyObjects(parts, HEIGHT, WIDTH)) if parts else None
        elif found and isinstance(found["counts"], list):
            found = coco_mask.frPyObjects(found, HEIGHT, WIDTH)
        if not found:
            continue
        region = coco_mask.decode(found).astype(bool)
        if a.get("iscrowd") and crowd == "ignore":
            ignored |= region
        else:
            mask = np.maximum(mask, index_of[a["category_id"]] * region)
    mask[ignored & (mask == 0)] = 255
    return mask


def main(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(3):
        PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"images/{number}.png")
    for number in range(COUNT):
        rng = random.Random(number)
        content: Any = valid(rng)
        if number % 4:
            content = json.dumps(mutants.changed(content, rng.choice((ODD, NUMBERS, NUMBERS)), rng)).encode()
        else:
            content = mutants.damaged(json.dumps(content).encode(), rng)
        file = folder / f"{number}.json"
        file.write_bytes(content)
        rules = MasksConfig(
            rasterizer=rng.choice(("coco", "coco", "pillow")),
            overlap=rng.choice(("max", "max", "smallest", "ignore")),
            crowd=rng.choice(("ignore", "draw", "skip")),
        )
        mutants.judge(str(file), partial(use, folder, file, rules))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_mutants_of_annotation_files(tmp_path: Path) -> None:
    found = mutants.run(__file__, tmp_path)
    assert found[mutants.ACCEPTED] + found[mutants.REFUSED] == COUNT
    assert min(found[mutants.ACCEPTED], found[mutants.REFUSED]) > COUNT // 8  # else they test little


if __name__ == "__main__":
    main(Path(sys.argv[1]))
