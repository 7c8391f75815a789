"""The built-in data set: drawn shapes in COCO format.

It is small, needs no download, and holds everything that a real file may: several classes, overlaps, an
object of several parts, a hole (as uncompressed RLE), crowd regions (as compressed RLE), images of several
sizes, a grayscale one. Later classes are painted over earlier ones, as the overlap rule `max` has it.
"""

import colorsys
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
from pycocotools import mask as coco_mask

from cocoseg.errors import CocosegError
from cocoseg.files import locked, remove_parts, write_bytes

# Ids have gaps, as COCO's have.
CATEGORIES = {3: "square", 5: "triangle", 8: "circle", 13: "star", 21: "ring", 34: "dumbbell"}
HUES = {3: 0.0, 5: 0.12, 8: 0.33, 13: 0.5, 21: 0.65, 34: 0.83}  # 0..1; neighbours overlap by HUE_SPREAD
HUE_SPREAD = 0.06
SIZES = ((128, 96), (96, 128), (112, 112), (160, 120), (90, 75))  # width, height
Polygon = list[float]


def draw_shapes(root: Path, *, images: int, seed: int) -> None:
    """Draw the data set to `root/images` and `root/annotations/instances.json`.

    Does nothing where it is there already with the same settings. The same settings give the same files.

    Raises:
        CocosegError: `root` holds something else.
    """
    made_from = {"generator": 2, "images": images, "seed": seed}
    annotation_file = root / "annotations" / "instances.json"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CocosegError(f"data.root: {root} can't be made ({error.strerror})") from error
    with locked(root):
        _claim(root)
        remove_parts(annotation_file.parent)  # a killed run may have left one
        drawing = root / "images.part"
        shutil.rmtree(drawing, ignore_errors=True)
        if _read_settings(annotation_file) == made_from:
            return
        drawing.mkdir()
        content = _draw_all(drawing, images, seed)
        # The annotation file goes first and comes last: where it is, the images are its own.
        annotation_file.unlink(missing_ok=True)
        shutil.rmtree(root / "images", ignore_errors=True)
        drawing.rename(root / "images")
        write_bytes(annotation_file, json.dumps({"info": made_from, **content}).encode())


def _read_settings(annotation_file: Path) -> Any:
    """The settings that the data set was drawn with, or None where it is missing or damaged."""
    try:
        return json.loads(annotation_file.read_bytes())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _claim(root: Path) -> None:
    mark = root / ".shapes"
    if not mark.exists() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise CocosegError(
            f"data.root: {root} holds files that are not the built-in shapes; name another folder"
        )
    if not mark.exists():
        mark.touch()


def _draw_all(folder: Path, images: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Write the images; returns the lists of the annotation file."""
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
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in CATEGORIES.items()]
    return {"images": listed, "annotations": annotations, "categories": categories}


def _draw_scene(rng: np.random.Generator, *, crowd: bool) -> tuple[PIL.Image.Image, list[dict[str, Any]]]:
    """An image and its annotations, without their ids."""
    width, height = SIZES[rng.integers(len(SIZES))]
    image = _draw_background(rng, width, height)
    objects = []
    if crowd:
        objects.append(_draw_crowd(image, rng))
    for category_id in sorted(rng.choice(list(CATEGORIES), size=rng.integers(2, 5))):
        objects.append(_draw_object(image, int(category_id), rng))
    return _add_camera_noise(image, rng), objects


def _draw_background(rng: np.random.Generator, width: int, height: int) -> PIL.Image.Image:
    """A smooth random pattern in dull colors."""
    coarse = rng.integers(60, 150, size=(4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def _add_camera_noise(image: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """Soft edges and noise, as a camera makes them."""
    pixels = np.asarray(image.filter(PIL.ImageFilter.GaussianBlur(0.6)), dtype=np.float32)
    noisy = pixels + rng.normal(0, 8, pixels.shape)
    return PIL.Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _draw_object(image: PIL.Image.Image, category_id: int, rng: np.random.Generator) -> dict[str, Any]:
    width, height = image.size
    radius = rng.uniform(0.16, 0.3) * min(width, height)
    center = (rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height)
    angle = rng.uniform(0, 2 * math.pi)
    name = CATEGORIES[category_id]
    parts = [_clip(part, width, height) for part in OUTLINES[name](*center, radius, angle)]
    segmentation: Any = [part for part in parts if part]
    region = _fill(image.size, segmentation)
    if name == "ring":
        region &= ~_fill(image.size, [_polar(*center, [0.55 * radius] * 24, angle)])
        segmentation = _uncompressed_rle(region)
    image.paste(_color(rng, HUES[category_id]), mask=PIL.Image.fromarray(region))
    return _annotation(category_id, region, segmentation, crowd=False)


def _color(rng: np.random.Generator, hue: float) -> tuple[int, int, int]:
    hue += rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.5, 1), rng.uniform(0.6, 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_crowd(image: PIL.Image.Image, rng: np.random.Generator) -> dict[str, Any]:
    """Many small circles, annotated as one region."""
    width, height = image.size
    left, top = rng.uniform(0, 0.6) * width, rng.uniform(0, 0.6) * height
    region = np.zeros((height, width), dtype=bool)
    for _ in range(25):
        x, y = left + rng.uniform(0, 0.4) * width, top + rng.uniform(0, 0.4) * height
        dot = _fill(image.size, OUTLINES["circle"](x, y, 3.0, 0.0))
        image.paste(_color(rng, HUES[8]), mask=PIL.Image.fromarray(dot))
        region |= dot
    segmentation = {"size": [height, width], "counts": _encode(region)["counts"].decode()}
    return _annotation(8, region, segmentation, crowd=True)


def _annotation(category_id: int, region: np.ndarray, segmentation: Any, *, crowd: bool) -> dict[str, Any]:
    encoded = _encode(region)
    return {
        "category_id": category_id,
        "iscrowd": int(crowd),
        "area": float(coco_mask.area(encoded)),
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "segmentation": segmentation,
    }


def _encode(region: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of a region, (H, W) bool."""
    return coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))


def _fill(size: tuple[int, int], parts: list[Polygon]) -> np.ndarray:
    canvas = PIL.Image.new("1", size)
    draw = PIL.ImageDraw.Draw(canvas)
    for part in parts:
        draw.polygon(part, fill=1)
    return np.array(canvas)


def _uncompressed_rle(region: np.ndarray) -> dict[str, Any]:
    flat = region.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return {"size": list(region.shape), "counts": [0, *runs] if flat[0] else runs}


def _polar(x: float, y: float, radii: list[float], angle: float) -> Polygon:
    """A closed outline around (x, y), one radius per corner."""
    points = []
    for corner, radius in enumerate(radii):
        turn = angle + 2 * math.pi * corner / len(radii)
        points += [round(x + radius * math.cos(turn), 2), round(y + radius * math.sin(turn), 2)]
    return points


def _clip(polygon: Polygon, width: int, height: int) -> Polygon:
    """The part of a polygon inside the image, edge by edge (Sutherland and Hodgman 1974)."""
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        for before, here in zip([*points[-1:], *points[:-1]], points, strict=True):
            inside = [(point[axis] - limit) * sign >= 0 for point in (before, here)]
            if inside[0] != inside[1]:
                share = (limit - before[axis]) / (here[axis] - before[axis])
                crossing = [round(b + share * (h - b), 2) for b, h in zip(before, here, strict=True)]
                crossing[axis] = limit
                kept.append(tuple(crossing))
            if inside[1]:
                kept.append(here)
        points = kept
    return [coordinate for point in points for coordinate in point]


def _dumbbell(x: float, y: float, radius: float, angle: float) -> list[Polygon]:
    """Two separate squares: one object of two parts."""
    dx, dy = 0.75 * radius * math.cos(angle), 0.75 * radius * math.sin(angle)
    return [_polar(x + s * dx, y + s * dy, [0.55 * radius] * 4, angle) for s in (-1, 1)]


# Parts of an object at (x, y) with a radius and an angle.
OUTLINES: dict[str, Callable[[float, float, float, float], list[Polygon]]] = {
    "square": lambda x, y, r, a: [_polar(x, y, [r] * 4, a)],
    "triangle": lambda x, y, r, a: [_polar(x, y, [r * 1.1] * 3, a)],
    "circle": lambda x, y, r, a: [_polar(x, y, [r] * 24, a)],
    "star": lambda x, y, r, a: [_polar(x, y, [r * 1.15, r * 0.45] * 5, a)],
    "ring": lambda x, y, r, a: [_polar(x, y, [r] * 24, a)],
    "dumbbell": _dumbbell,
}
