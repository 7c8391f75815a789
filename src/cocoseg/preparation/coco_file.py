"""The COCO annotation file: typed reading, checks, and writing of subsets.

The file is decoded into small structs; a segmentation stays a view into the file's bytes until its image
is drawn. Format: https://cocodataset.org/#format-data (instances).
"""

import codecs
import json
import math
import unicodedata
from collections import deque
from collections.abc import Collection
from itertools import compress
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import write_bytes
from cocoseg.labels import Category

MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
_PIECE = 2**20  # bytes that are decoded at a time
# Warnings: faults of an image that are no errors.
NO_ANNOTATION = "no annotation"
SAME_NAME = "the file name of another one in different case"


class Image(msgspec.Struct, frozen=True, gc=False):
    id: int
    file_name: str
    width: int
    height: int
    coco_url: str | None = None


class Annotation(msgspec.Struct, frozen=True, gc=False):
    id: int
    image_id: int
    category_id: int
    iscrowd: int | bool = 0
    area: float | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Content(msgspec.Struct, gc=False):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


class CocoFile:
    """A checked annotation file.

    Attributes:
        path: where it was read from.
        images, annotations, categories: in the order of the file.
    """

    def __init__(self, path: Path, content: bytes, decoded: _Content):
        self.path = path
        self.images = decoded.images
        self.annotations = decoded.annotations
        self.categories = decoded.categories
        self._bytes = content

    def warnings(self) -> dict[str, list[int | str]]:
        """Warning -> ids, or file names, of the images that it is about."""
        annotated = {annotation.image_id for annotation in self.annotations}
        empty = [image.id for image in self.images if image.id not in annotated]
        first: dict[str, str] = {}  # lower case -> first name
        names = [image.file_name for image in self.images]
        duplicates = [name for name in names if first.setdefault(name.lower(), name) != name]
        found: dict[str, list[int | str]] = {NO_ANNOTATION: empty, SAME_NAME: duplicates}
        return {what: ids for what, ids in found.items() if ids}

    def annotations_of(self, image_ids: Collection[int]) -> dict[int, list[Annotation]]:
        """The annotations of each of these images, in the order of the file."""
        grouped: dict[int, list[Annotation]] = {image_id: [] for image_id in image_ids}
        for annotation in self.annotations:
            if annotation.image_id in grouped:
                grouped[annotation.image_id].append(annotation)
        return grouped

    def write_subset(self, image_ids: Collection[int], path: Path) -> None:
        """Write a COCO file of these images and their annotations, every field as it was, byte for byte."""
        parts = msgspec.json.decode(self._bytes, type=dict[str, msgspec.Raw])
        for key, chosen in (
            ("images", (image.id in image_ids for image in self.images)),
            ("annotations", (annotation.image_id in image_ids for annotation in self.annotations)),
        ):
            items = compress(msgspec.json.decode(parts[key], type=list[msgspec.Raw]), chosen)
            parts[key] = msgspec.Raw(b"[\n" + b",\n".join(map(bytes, items)) + b"\n]")
        body = b",\n".join(msgspec.json.encode(key) + b": " + bytes(value) for key, value in parts.items())
        write_bytes(path, b"{" + body + b"}\n")


def read(path: Path) -> CocoFile:
    """Read and check an instances file.

    Raises:
        CocosegError: it is not there, is no JSON, lacks a key, or contradicts itself.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CocosegError(f"{path}: can't be read ({error.strerror})") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    _check_encoding(path, content)
    try:
        try:
            decoded = msgspec.json.decode(content, type=_Content)
        except msgspec.ValidationError as error:
            raise CocosegError(f"{path}: {_locate_error(content, error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CocosegError(f"{path}: {_locate_nan(content) or f'no valid JSON ({error})'}") from error
    _check(path, decoded)
    return CocoFile(path, content, decoded)


def is_inside(file_name: str) -> bool:
    """Whether a file name stays in the image folder, on any system."""
    path = PureWindowsPath(file_name)  # splits at \ and / and knows drives
    outside = path.drive or path.root or ".." in path.parts or "\0" in file_name
    return not outside and bool(path.name)


def _breaks_lines(name: str) -> bool:
    """Whether it holds control characters or line breaks, which would tear messages and tables apart."""
    return not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name)


def _locate_error(content: bytes, error: msgspec.ValidationError) -> str:
    """Describe the error with the index of its entry; msgspec itself says `$.images[...]`."""
    try:
        parts = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return "not a COCO file: an object with 'images', 'annotations' and 'categories' belongs there"
    for key, kind in (("images", Image), ("annotations", Annotation), ("categories", Category)):
        if key not in parts:
            return f"not a COCO file: the key '{key}' is missing"
        try:
            items = msgspec.json.decode(parts[key], type=list[msgspec.Raw])
        except msgspec.ValidationError:
            return f"'{key}' must be a list"
        for index, item in enumerate(items):
            try:
                msgspec.json.decode(item, type=kind)
            except msgspec.ValidationError as inner:
                return f"{key}[{index}]: {str(inner).replace(' - at `$.', ' at `')}"
    return str(error)


def _check_encoding(path: Path, content: bytes) -> None:
    """Refuse what is not UTF-8. Decodes in pieces: one string would take up several times the file's size."""
    pieces = (content[start : start + _PIECE] for start in range(0, len(content), _PIECE))
    try:
        if not content.isascii():
            deque(codecs.iterdecode(pieces, "utf-8"), maxlen=0)
    except UnicodeDecodeError as error:
        raise CocosegError(
            f"{path}: not UTF-8, as JSON must be ({error.reason}); save it as UTF-8"
        ) from error


def _locate_nan(content: bytes) -> str | None:
    """Locate NaN or infinity, which Python's json module writes; None where there is neither."""
    found: list[str] = []
    try:
        parts = json.loads(content, parse_constant=lambda name: found.append(name) or math.nan)
    except (ValueError, RecursionError):
        return None
    if not found:
        return None
    if isinstance(parts, dict):
        for key in ("images", "annotations", "categories"):
            for index, item in enumerate(parts.get(key) or []):
                for name, value in item.items() if isinstance(item, dict) else ():
                    if not _is_finite(value):
                        which = f"{key[:-1]} {item['id']}" if "id" in item else f"{key}[{index}]"
                        return f"{which} has NaN or infinity in its {name}, which is no number in JSON"
    return f"it holds {found[0]}, which is no number in JSON"


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | dict):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _check(path: Path, content: _Content) -> None:
    if not content.images:
        raise CocosegError(f"{path}: no images in it")
    if not content.categories:
        raise CocosegError(f"{path}: no categories in it")
    image_ids = _unique(path, "images", content.images)
    category_ids = _unique(path, "categories", content.categories)
    _unique(path, "annotations", content.annotations)
    for image in content.images:
        _check_image(path, image)
    for annotation in content.annotations:
        if annotation.image_id not in image_ids:
            missing = f"image {annotation.image_id}"
        elif annotation.category_id not in category_ids:
            missing = f"category {annotation.category_id}"
        else:
            continue
        raise CocosegError(f"{path}: annotation {annotation.id} is of {missing}, which is not listed")


def _unique(path: Path, key: str, items: list) -> set[int]:
    ids = {item.id for item in items}
    if len(ids) < len(items):
        seen: set[int] = set()
        duplicate = next(item.id for item in items if item.id in seen or seen.add(item.id))
        raise CocosegError(f"{path}: the id {duplicate} occurs twice in '{key}'")
    return ids


def _check_image(path: Path, image: Image) -> None:
    if image.width < 1 or image.height < 1 or image.width * image.height > MAX_PIXELS:
        raise CocosegError(
            f"{path}: image {image.id} is said to be {image.width}x{image.height} pixels; "
            f"between 1 and {MAX_PIXELS} pixels are allowed"
        )
    if not is_inside(image.file_name) or _breaks_lines(image.file_name):
        raise CocosegError(
            f"{path}: image {image.id} has the file_name {image.file_name!r}; "
            "it must be a path inside the image folder"
        )
