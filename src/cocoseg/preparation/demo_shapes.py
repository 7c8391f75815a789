"""The built-in data set: drawn shapes in COCO format.

It is small, needs no download, and has what real data sets have: several classes, overlaps, an object of
several parts, a hole (as uncompressed RLE), crowd regions (as compressed RLE), images of several sizes, a
grayscale image. Later classes are drawn over earlier ones, as by the overlap rule `max`.
"""

import colorsys
import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
from pycocotools import mask as coco_mask

from cocoseg.errors import CocosegError
from cocoseg.files import is_empty, locked, remove_parts, write_bytes, writing_to
from cocoseg.preparation.segmentations import rle_runs

# Category id -> name, hue, and radii of an outline's corners. Ids have gaps, as COCO's have.
CATEGORIES = {
    3: ("square", 0.0, [1.0] * 4),
    5: ("triangle", 0.12, [1.1] * 3),
    8: ("circle", 0.33, [1.0] * 24),
    13: ("star", 0.5, [1.15, 0.45] * 5),
    21: ("ring", 0.65, [1.0] * 24),
    34: ("dumbbell", 0.83, [0.55] * 4),
}
HUE_SPREAD = 0.06  # so wide that neighboring hues overlap
SIZES = ((128, 96), (96, 128), (112, 112), (160, 120), (90, 75))  # width, height
ANNOTATIONS = "annotations/instances.json"  # below the data set's root
IMAGE_NAME = re.compile(r"image_\d{3,}\.jpg")
Polygon = Sequence[tuple[float, float]]


def draw_shapes(root: Path, *, images: int, seed: int) -> None:
    """Draw the data set to `root/images` and `root/annotations/instances.json`.

    Nothing is drawn where it is there already with the same settings. The same settings give the same files.

    Raises:
        CocosegError: `root` holds something else.
    """
    annotation_file = root / ANNOTATIONS
    with writing_to(root, key="data.root"):
        root.mkdir(parents=True, exist_ok=True)
    mark = root / ".shapes"
    if not mark.exists() and not is_empty(root):
        raise CocosegError(
            f"data.root: {root} holds files that are not the built-in shapes; name another folder"
        )
    with locked(root):
        remove_parts(annotation_file.parent)  # a killed run may have left one
        if is_drawn(root, images=images, seed=seed):
            return
        mark.touch()
        # The annotation file is deleted first and written last: where it exists, the images belong to it.
        annotation_file.unlink(missing_ok=True)
        (root / "images").mkdir(exist_ok=True)
        for file in (root / "images").iterdir():
            if IMAGE_NAME.fullmatch(file.name):
                file.unlink()
        content = _draw_all(root / "images", images, seed)
        rest = json.dumps(content).encode().removeprefix(b"{")
        write_bytes(annotation_file, _head(images, seed) + b", " + rest)


def is_drawn(root: Path, *, images: int, seed: int) -> bool:
    """Tell whether `draw_shapes` has nothing to do."""
    head = _head(images, seed)
    try:
        with (root / ANNOTATIONS).open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False


def _head(images: int, seed: int) -> bytes:
    """The beginning of the annotation file, which holds the settings."""
    return json.dumps({"info": {"generator": 2, "images": images, "seed": seed}}).encode().removesuffix(b"}")


def _draw_all(folder: Path, images: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Write the images. Returns the lists of the annotation file."""
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(1, images + 1):
        image, objects = _draw_scene(np.random.default_rng([seed, index]), crowd=index % 10 == 0)
        if index == 7:
            image = image.convert("L")
        name = f"image_{index:03d}.jpg"
        image.save(folder / name, quality=92)
        listed.append({"id": index, "file_name": name, "width": image.width, "height": image.height})
        for fields in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index, **fields})
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, (name, *_) in CATEGORIES.items()]
    return {"images": listed, "annotations": annotations, "categories": categories}


def _draw_scene(rng: np.random.Generator, *, crowd: bool) -> tuple[PIL.Image.Image, list[dict[str, Any]]]:
    """Draw objects on a smooth dull background. Returns the image, and its annotations without ids."""
    size = SIZES[rng.integers(len(SIZES))]
    coarse = rng.integers(60, 150, size=(4, 4, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)
    objects = [_draw_crowd(image, rng)] if crowd else []
    for category_id in sorted(rng.choice(list(CATEGORIES), size=rng.integers(2, 5))):
        objects.append(_draw_object(image, int(category_id), rng))
    # Soft edges and noise, as a camera makes them.
    pixels = np.asarray(image.filter(PIL.ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    noisy = pixels + rng.normal(0, 8, pixels.shape)
    return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), objects


def _draw_object(image: PIL.Image.Image, category_id: int, rng: np.random.Generator) -> dict[str, Any]:
    name, hue, radii = CATEGORIES[category_id]
    width, height = image.size
    radius = rng.uniform(0.16, 0.3) * min(width, height)
    x, y = rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height
    angle = rng.uniform(0, 2 * math.pi)
    centers = [(x, y)]
    if name == "dumbbell":  # two separate squares: one object of two parts
        dx, dy = 0.75 * radius * math.cos(angle), 0.75 * radius * math.sin(angle)
        centers = [(x - dx, y - dy), (x + dx, y + dy)]
    outlines = [_outline(*center, [radius * share for share in radii], angle) for center in centers]
    parts = [part for part in (_clip(outline, width, height) for outline in outlines) if part]
    region = _fill(image.size, parts)
    if name == "ring":
        region &= ~_fill(image.size, [_outline(x, y, [0.55 * radius] * 24, angle)])
        parts = []  # polygons have no holes
    image.paste(_color(rng, hue), mask=PIL.Image.fromarray(region))
    return _annotation(category_id, region, parts)


def _draw_crowd(image: PIL.Image.Image, rng: np.random.Generator) -> dict[str, Any]:
    """Draw many small circles, annotated as one region."""
    width, height = image.size
    left, top = rng.uniform(0, 0.6) * width, rng.uniform(0, 0.6) * height
    region = np.zeros((height, width), dtype=bool)
    for _ in range(25):
        x, y = left + rng.uniform(0, 0.4) * width, top + rng.uniform(0, 0.4) * height
        dot = _fill(image.size, [_outline(x, y, [3.0] * 24, 0.0)])
        image.paste(_color(rng, CATEGORIES[8][1]), mask=PIL.Image.fromarray(dot))
        region |= dot
    return _annotation(8, region, crowd=True)


def _color(rng: np.random.Generator, hue: float) -> tuple[int, int, int]:
    hue += rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.6, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def _annotation(
    category_id: int, region: np.ndarray, parts: Sequence[Polygon] = (), *, crowd: bool = False
) -> dict[str, Any]:
    """Annotate a region, (H, W) bool: by polygons if given, else by RLE, compressed for a crowd."""
    encoded = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    counts = encoded["counts"].decode()
    rle = {"size": encoded["size"], "counts": counts if crowd else rle_runs(counts).tolist()}
    return {
        "category_id": category_id,
        "iscrowd": int(crowd),
        "area": float(coco_mask.area(encoded)),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "segmentation": [[number for point in part for number in point] for part in parts] or rle,
    }


def _fill(size: tuple[int, int], parts: Sequence[Polygon]) -> np.ndarray:
    canvas = PIL.Image.new("1", size)
    for part in parts:
        PIL.ImageDraw.Draw(canvas).polygon(part, fill=1)
    return np.array(canvas)


def _outline(x: float, y: float, radii: Sequence[float], angle: float) -> Polygon:
    """Corners around (x, y), one for each radius."""
    turns = [angle + 2 * math.pi * corner / len(radii) for corner in range(len(radii))]
    return [
        (round(x + radius * math.cos(turn), 2), round(y + radius * math.sin(turn), 2))
        for radius, turn in zip(radii, turns, strict=True)
    ]


def _clip(points: Polygon, width: int, height: int) -> Polygon:
    """The part of a polygon inside the image, edge by edge (Sutherland and Hodgman 1974)."""
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[tuple[float, float]] = []
        for before, here in pairwise([*points[-1:], *points]):
            inside = [(point[axis] - limit) * sign >= 0 for point in (before, here)]
            if inside[0] != inside[1]:
                share = (limit - before[axis]) / (here[axis] - before[axis])
                crossing = [round(b + share * (h - b), 2) for b, h in zip(before, here, strict=True)]
                crossing[axis] = limit
                kept.append((crossing[0], crossing[1]))
            if inside[1]:
                kept.append(here)
        points = kept
    return points
