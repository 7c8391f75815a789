"""Speed of drawing masks: cocoseg, one canvas per polygon with `np.maximum`, and the usual pycocotools loop.

    python benchmarks/masks.py                                     # seeded synthetic annotations
    python benchmarks/masks.py --annotations instances.json --images train2017    # and real ones

The first table is per core, on the same annotations; the ways take turns, several rounds, medians. It shows
drawing alone, and with the PNG written (the two loops write it as Pillow does by default: mode L, level 6).
Crowd regions are left out everywhere. Before that all ways are checked to draw the same masks. Below the
table are the parts of cocoseg's time; `zlib alone` compresses the same pixels and does nothing else.

A further table is for one image of many small objects, as cells under a microscope, once as polygons and once
as RLE, against the loop of `annToMask` and `np.maximum`.

The last table is for whole folders: `--count` masks by `draw_masks` on one core and on all (real images are
linked under that many names). It shows masks and PNGs, then the same with the other work of `prepare.py`: the
survey of a sample, the check of every image.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from pycocotools import mask as coco_mask

from cocoseg.config import MasksConfig
from cocoseg.images.image_files import Inspection
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.preparation import coco_file as coco_format
from cocoseg.preparation import draw_masks
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, parse_layers
from cocoseg.preparation.survey import sample, survey
from cocoseg.workers import available_cores

SYNTHETIC = 128  # images


def write_synthetic(path: Path) -> None:
    """Blobs of COCO's proportions: 7 objects an image, 26 points each, 3 classes, areas of all sizes."""
    rng = random.Random(0)
    images, annotations = [], []
    for number in range(1, SYNTHETIC + 1):
        width, height = rng.choice([(640, 480), (480, 640), (640, 427), (500, 375)])
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        classes = rng.sample(range(1, 81), 3)
        for _ in range(max(1, round(rng.expovariate(1 / 7)))):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": rng.choice(classes),
                    "iscrowd": 0,
                    "segmentation": [_blob(rng, width, height)],
                }
            )
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _blob(rng: random.Random, width: int, height: int) -> list[float]:
    points = max(4, round(rng.expovariate(1 / 26)))
    radius = min(width, height) / 2 * rng.random() ** 3 + 4
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    polygon = []
    for angle in np.linspace(0, 2 * np.pi, points, endpoint=False):
        r = radius * rng.uniform(0.7, 1.2)
        polygon += [
            round(float(np.clip(x + r * np.cos(angle), 0, width)), 2),
            round(float(np.clip(y + r * np.sin(angle), 0, height)), 2),
        ]
    return polygon


def naive(annotations: list[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """One canvas per polygon."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for annotation in annotations:
        for polygon in annotation["segmentation"]:
            canvas = PIL.Image.new("L", (width, height), 0)
            PIL.ImageDraw.Draw(canvas).polygon(polygon, fill=annotation["category_id"])
            mask = np.maximum(mask, np.array(canvas))
    return mask


def usual_pycocotools(
    annotations: list[dict[str, Any]], height: int, width: int, order: str = "C"
) -> np.ndarray:
    """`COCO.annToMask` of each annotation, times its category id.

    Few people know that the order "F", that of pycocotools' own arrays, makes it several times faster.
    """
    mask = np.zeros((height, width), dtype=np.uint8, order=order)
    for annotation in annotations:
        encoded = annotation["segmentation"]
        if isinstance(encoded, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(encoded, height, width))
        mask = np.maximum(mask, coco_mask.decode(encoded) * np.uint8(annotation["category_id"]))
    return mask


CELLS, SIDE = 2000, 2048  # objects in an image, and its height and width in pixels


def write_cells(path: Path, kind: str) -> None:
    """One image of many small blobs, as polygons or as compressed RLE."""
    rng = random.Random(0)
    annotations = []
    for number in range(1, CELLS + 1):
        x, y, radius = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(8, 20)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline = np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1)
        segmentation: Any = [outline.clip(0, SIDE).round(2).ravel().tolist()]
        if kind == "RLE":
            runs = coco_mask.frPyObjects(segmentation, SIDE, SIDE)[0]
            segmentation = {"size": [SIDE, SIDE], "counts": runs["counts"].decode()}
        annotation = {"id": number, "image_id": 1, "category_id": rng.randint(1, 5), "iscrowd": 0}
        annotations.append({**annotation, "segmentation": segmentation})
    images = [{"id": 1, "file_name": "1.png", "width": SIDE, "height": SIDE}]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 6)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


class Bench:
    """The annotations of one file, as each of the ways wants them: Python objects, or the file's bytes."""

    def __init__(self, annotation_file: Path, folder: Path):
        self.coco = coco_format.read(annotation_file)
        self.labels = LabelMap.from_categories(self.coco.categories)
        self.encoding = MaskEncoding("palette", self.labels)
        self.folder = folder
        index_of = self.labels.index_of
        self.raw, self.objects = [], []
        for annotations in self.coco.annotations_of({image.id for image in self.coco.images}).values():
            flat = [a for a in annotations if not a.iscrowd]
            self.raw.append(
                [Instance(a.id, index_of[a.category_id], False, bytes(a.segmentation)) for a in flat]
            )
            self.objects.append(
                [
                    {"category_id": a.category_id, "segmentation": json.loads(bytes(a.segmentation))}
                    for a in flat
                ]
            )

    def ours(self, rasterizer: str = "pillow") -> list[np.ndarray]:
        return [
            paint(parse_layers(raw, image.height, image.width, "ignore"), MasksConfig(rasterizer=rasterizer))
            for raw, image in zip(self.raw, self.coco.images, strict=True)
        ]

    def theirs(self, draw: Callable[..., np.ndarray]) -> list[np.ndarray]:
        return [
            draw(objects, image.height, image.width)
            for objects, image in zip(self.objects, self.coco.images, strict=True)
        ]

    def check(self) -> None:
        """All ways draw the same."""
        ids = np.array([0] + [c.category_id for c in self.labels.classes[1:]], dtype=np.uint8)
        for rasterizer, draw in (("pillow", naive), ("coco", usual_pycocotools)):
            for ours, theirs in zip(self.ours(rasterizer), self.theirs(draw), strict=True):
                np.testing.assert_array_equal(ids[ours], theirs)

    # Each of these draws, or draws and writes, one image after the other, keeping none.

    def draw_ours(self, rasterizer: str = "pillow") -> None:
        rules = MasksConfig(rasterizer=rasterizer)
        for raw, image in zip(self.raw, self.coco.images, strict=True):
            paint(parse_layers(raw, image.height, image.width, "ignore"), rules)

    def draw_theirs(self, draw: Callable[..., np.ndarray]) -> None:
        for objects, image in zip(self.objects, self.coco.images, strict=True):
            draw(objects, image.height, image.width)

    def write_ours(self) -> None:
        for raw, image in zip(self.raw, self.coco.images, strict=True):
            layers = parse_layers(raw, image.height, image.width, "ignore")
            mask = paint(layers, MasksConfig(), self.encoding.paint_values)
            self.encoding.write_painted(mask, self.folder / f"{image.id}.png")

    def write_theirs(self, draw: Callable[..., np.ndarray]) -> None:
        for objects, image in zip(self.objects, self.coco.images, strict=True):
            mask = PIL.Image.fromarray(draw(objects, image.height, image.width))
            mask.save(self.folder / f"{image.id}.png")

    def parts(self) -> dict[str, Callable[[], object]]:
        """Name -> function that does a part of drawing masks, or of the other work of `prepare.py`."""
        sizes = [(image.height, image.width) for image in self.coco.images]
        layers = [parse_layers(raw, *size, "ignore") for raw, size in zip(self.raw, sizes, strict=True)]
        drawn = [paint(one, MasksConfig()) for one in layers]
        rows = [np.pad(mask, ((0, 0), (1, 0))).tobytes() for mask in drawn]  # PNG: a byte before each row
        return {
            "parse": lambda: [parse_layers(r, *s, "ignore") for r, s in zip(self.raw, sizes, strict=True)],
            "paint": lambda: [paint(one, MasksConfig()).size for one in layers],
            "zlib alone": lambda: [_zlib(row) for row in rows],
            "write a PNG": lambda: [
                self.encoding.write_painted(mask, self.folder / f"{number}.png")
                for number, mask in enumerate(drawn)
            ],
            "survey": lambda: [len(survey(one, "pillow")) for one in layers],
        }


def _zlib(rows: bytes) -> bytes:
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return deflate.compress(rows) + deflate.flush()


def medians(
    ways: dict[str, Callable[[], object]], images: int, rounds: int, folder: Path
) -> dict[str, float]:
    """Milliseconds per image; the ways in turn, each into an empty folder."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) / images * 1e3 for name, values in seconds.items()}


def compare(name: str, bench: Bench, rounds: int) -> None:
    images = len(bench.coco.images)
    bench.check()
    drawing = medians(
        {
            "ours": bench.draw_ours,
            "canvas per polygon": lambda: bench.draw_theirs(naive),
            "pycocotools": lambda: bench.draw_theirs(usual_pycocotools),
        },
        images,
        rounds,
        bench.folder,
    )
    writing = medians(
        {
            "ours": bench.write_ours,
            "canvas per polygon": lambda: bench.write_theirs(naive),
            "pycocotools": lambda: bench.write_theirs(usual_pycocotools),
        },
        images,
        rounds,
        bench.folder,
    )
    objects = sum(map(len, bench.raw)) / images
    print(f"\n{name}: {images} images, {objects:.1f} objects each; one core, ms per image\n")
    print("| way | drawing | times ours | with the PNG | times ours |")
    print("|---|---|---|---|---|")
    for way in drawing:
        print(
            f"| {way} | {drawing[way]:.2f} | {drawing[way] / drawing['ours']:.1f} "
            f"| {writing[way]:.2f} | {writing[way] / writing['ours']:.1f} |"
        )
    parts = medians(bench.parts(), images, rounds, bench.folder)
    print("\n" + "; ".join(f"{part} {value:.2f}" for part, value in parts.items()))


def many_small_objects(folder: Path, rounds: int) -> None:
    print(f"\n{CELLS} objects of 16 to 40 pixels in an image of {SIDE}x{SIDE}; one core, ms\n")
    print("| objects | ours | annToMask and np.maximum | times ours |")
    print("|---|---|---|---|")
    loop = partial(usual_pycocotools, order="F")
    for kind in ("polygons, coco", "RLE"):
        write_cells(folder / "cells.json", kind)
        bench = Bench(folder / "cells.json", folder / "out")
        ids = np.array([0] + [c.category_id for c in bench.labels.classes[1:]], dtype=np.uint8)
        np.testing.assert_array_equal(ids[bench.ours("coco")], bench.theirs(loop))
        ways = {
            "ours": partial(bench.draw_ours, "coco"),
            "theirs": partial(bench.draw_theirs, loop),
        }
        found = medians(ways, 1, rounds, bench.folder)
        ratio = found["theirs"] / found["ours"]
        print(f"| {kind} | {found['ours']:.0f} | {found['theirs']:.0f} | {ratio:.0f} |")


def whole_folder(bench: Bench, image_dir: Path | None, count: int, rounds: int) -> None:
    """`count` masks by `draw_masks`: with the survey of overlaps, and with the check of every image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = repeated(bench, image_dir, folder, count)
        coco = coco_format.read(content)
        print(f"\n{count} masks, seconds\n")
        print("| cores | masks and PNGs | with the survey | with every image decoded too |")
        print("|---|---|---|---|")
        for workers in sorted({1, available_cores()}):
            row = [
                statistics.median(_folder_seconds(coco, bench, folder, workers, extra) for _ in range(rounds))
                for extra in (0, 1, 2)[: 3 if image_dir is not None else 2]
            ]
            print(f"| {workers} | {' | '.join(f'{seconds:.1f}' for seconds in row)} |")


def repeated(bench: Bench, image_dir: Path | None, folder: Path, count: int) -> Path:
    """An annotation file of `count` images, the same ones again and again, each under a name of its own."""
    images, annotations = [], []
    (folder / "images").mkdir()
    by_image = bench.coco.annotations_of({image.id for image in bench.coco.images})
    for number in range(count):
        image = bench.coco.images[number % len(bench.coco.images)]
        name = f"{number}{Path(image.file_name).suffix}"
        if image_dir is not None:
            (folder / "images" / name).symlink_to((image_dir / image.file_name).resolve())
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for annotation in by_image[image.id]:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": annotation.category_id,
                    "iscrowd": int(annotation.iscrowd),
                    "segmentation": json.loads(bytes(annotation.segmentation)),
                }
            )
    categories = [{"id": c.id, "name": c.name} for c in bench.coco.categories]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _folder_seconds(
    coco: coco_format.CocoFile, bench: Bench, folder: Path, workers: int, extra: int
) -> float:
    """`extra` 0: masks and PNGs; 1: with the survey of overlaps; 2: with the check of every image."""
    shutil.rmtree(folder / "masks", ignore_errors=True)
    check_image = draw_masks.check_image
    if extra < 2:
        draw_masks.check_image = lambda _, *size: Inspection(size, 1, 0, [])  # as if every image were whole
    begin = time.perf_counter()
    for _ in draw_masks.draw_masks(
        coco,
        coco.images,
        folder / "images",
        folder / "masks",
        bench.labels,
        MasksConfig(),
        workers=workers,
        sample=sample(coco.images, 0) if extra else (),
    ):
        pass
    draw_masks.check_image = check_image
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, help="an instances file, its objects polygons")
    parser.add_argument("--images", type=Path, help="the folder of its images")
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic(folder / "synthetic.json")
        bench = Bench(folder / "synthetic.json", folder / "out")
        compare("synthetic", bench, options.rounds)
        if options.annotations is not None:
            bench = Bench(options.annotations, folder / "out")
            compare(options.annotations.name, bench, options.rounds)
        many_small_objects(folder, min(options.rounds, 3))
        whole_folder(bench, options.images, options.count, max(1, options.rounds // 2))


if __name__ == "__main__":
    main()
