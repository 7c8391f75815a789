"""COCO annotation files: typed reading, checks, and writing of subsets.

A file is decoded into small structs. A segmentation stays a view into the bytes of the file until its image
is drawn. Those of a panoptic file stay in its PNGs, see panoptic.py.
Format: https://cocodataset.org/#format-data (instances).
"""

import codecs
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PureWindowsPath
from typing import Generic, TypeVar
from urllib.parse import unquote

import msgspec

from cocoseg.errors import CocosegError, printable
from cocoseg.files import read_bytes, write_bytes
from cocoseg.labels import Category
from cocoseg.preparation.other_formats import PANOPTIC, other_format
from cocoseg.preparation.panoptic import IN_PNG, PanopticEntry
from cocoseg.preparation.segmentations import (
    Instance,
    SegmentationError,
    Shape,
    is_normalized,
    lies_within_one,
    parse_segmentation,
)

MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
UNNAMED = "no. "  # begins the name of an annotation without id; its place in the file follows, from 1
_PIECE = 2**20  # bytes that are decoded at a time
Entry = TypeVar("Entry")


class Image(msgspec.Struct, frozen=True, gc=False):
    """An entry of `images`. One without file_name, as in LVIS, gets the last part of its coco_url."""

    id: int
    width: int
    height: int
    file_name: str = ""
    coco_url: str | None = None


class Annotation(msgspec.Struct, frozen=True, gc=False):
    """An entry of `annotations`, or of `segments_info` in a panoptic file.

    The id names it in messages; it may be missing or not unique. The id of a segment is in its pixels, too.
    """

    image_id: int
    category_id: int
    id: int | str | None = None
    iscrowd: int | bool = 0
    area: float | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")

    def parse(self, height: int, width: int) -> Shape:
        """Parse the segmentation, see `parse_segmentation`; the class index of the shape is always 0."""
        return parse_segmentation(Instance(self.id, 0, False, bytes(self.segmentation)), height, width)


class _Content(msgspec.Struct, Generic[Entry], gc=False):
    images: list[Image]
    annotations: list[Entry]
    categories: list[Category]


@dataclass(frozen=True)
class CocoFile:
    """A checked annotation file.

    Attributes:
        path: of the file.
        content: its bytes.
        images, annotations, categories: in the order of the file.
        pngs: image id -> PNG of its segments, in the order of the file; None where it is not a panoptic file.
    """

    path: Path
    content: bytes
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]
    pngs: Mapping[int, Path] | None = None

    def annotations_of(self, image_ids: Collection[int]) -> dict[int, list[Annotation]]:
        """The annotations of each of these images, in the order of the file."""
        grouped: dict[int, list[Annotation]] = {image_id: [] for image_id in image_ids}
        for annotation in self.annotations:
            if annotation.image_id in grouped:
                grouped[annotation.image_id].append(annotation)
        return grouped

    def require_pixels(self) -> None:
        """Refuse polygons that all look like shares of the image's width and height, as YOLO writes them.

        One polygon in pixels ends the search, so that of most files only the first is read.

        Raises:
            CocosegError: the coordinates are shares.
        """
        sizes = {image.id: (image.height, image.width) for image in self.images}
        found = False
        for annotation in self.annotations:
            size = sizes[annotation.image_id]
            if max(size) <= 2 or bytes(annotation.segmentation).startswith(b"{"):
                continue  # too small an image to tell, or runs, which have no coordinates
            try:
                outline = annotation.parse(*size).outline
            except SegmentationError:
                return  # it is an error when its image is drawn
            if not isinstance(outline, list) or not outline:
                continue
            if not lies_within_one(outline):
                return
            found = found or is_normalized(outline, *size)
        if found:
            raise CocosegError(
                f"{self.path}: all coordinates lie between 0 and 1, as shares of the image; they must be "
                "pixels: multiply x by the image's width and y by its height, or export them so"
            )

    def write_subset(self, images: Iterable[Image], path: Path) -> None:
        """Write a COCO file of these images and their annotations.

        Every field keeps its bytes, apart from a `file_name` that was missing or has changed.
        """
        chosen = {image.id: image.file_name for image in images}
        parts = msgspec.json.decode(self.content, type=_Parts)
        raw_images, raw = (
            msgspec.json.decode(parts[key], type=list[msgspec.Raw]) for key in ("images", "annotations")
        )
        entries = zip(self.images, raw_images, strict=True)
        parts["images"] = _join(_named(entry, chosen[i.id]) for i, entry in entries if i.id in chosen)
        owners = (a.image_id for a in self.annotations) if self.pngs is None else self.pngs
        parts["annotations"] = _join(compress(raw, (image_id in chosen for image_id in owners)))
        write_bytes(path, _object(parts, separator=b",\n") + b"\n")


_Parts = dict[str, msgspec.Raw]  # a JSON object, its values as they were written


def _named(entry: msgspec.Raw, name: str) -> msgspec.Raw:
    """An entry of `images` under this `file_name`."""
    parts = msgspec.json.decode(entry, type=_Parts)
    if msgspec.json.decode(parts.get("file_name", b"null")) == name:
        return entry
    return msgspec.Raw(_object({**parts, "file_name": msgspec.Raw(msgspec.json.encode(name))}))


def _object(parts: _Parts, separator: bytes = b", ") -> bytes:
    body = separator.join(msgspec.json.encode(key) + b": " + bytes(value) for key, value in parts.items())
    return b"{" + body + b"}"


def _join(entries: Iterable[msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(b"[\n" + b",\n".join(map(bytes, entries)) + b"\n]")


def read(path: Path) -> CocoFile:
    """Read and check an instances or a panoptic file.

    Raises:
        CocosegError: it can't be read, is no JSON, lacks a key, or contradicts itself.
    """
    pngs = None
    try:
        content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise CocosegError(f"{path}: can't be read ({error.strerror})") from error
    try:
        if not content.isascii():  # msgspec does not check what it skips
            # In pieces: one string would take up to four times the file's size.
            pieces = (content[start : start + _PIECE] for start in range(0, len(content), _PIECE))
            deque(codecs.iterdecode(pieces, "utf-8"), maxlen=0)
        decoded = msgspec.json.decode(content, type=_Content[Annotation])
    except msgspec.ValidationError as error:
        found = other_format(content)
        if found != PANOPTIC:
            raise CocosegError(f"{path}: {found or f'not a COCO instances file ({error})'}") from error
        decoded, pngs = _read_panoptic(path, content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        has_nan = b"NaN" in content or b"Infinity" in content
        hint = "; NaN and Infinity are no numbers in JSON" if has_nan else ""
        raise CocosegError(f"{path}: no valid JSON in UTF-8 ({error}){hint}") from error
    _check(path, decoded)
    return CocoFile(path, content, decoded.images, decoded.annotations, decoded.categories, pngs)


def png_folder(path: Path) -> Path:
    """The folder of a panoptic file's PNGs: of its name, beside it (COCO) or one level up (Detectron2)."""
    folders = path.with_suffix(""), path.parent.parent / path.stem
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _read_panoptic(path: Path, content: bytes) -> tuple[_Content[Annotation], dict[int, Path]]:
    """Read a panoptic file. Returns each segment as an annotation, and the PNG of each image."""
    png_dir = png_folder(path)
    try:
        decoded = msgspec.json.decode(content, type=_Content[PanopticEntry])
    except msgspec.ValidationError as error:
        raise CocosegError(f"{path}: not {PANOPTIC} ({error})") from error
    pngs: dict[int, Path] = {}
    annotations: list[Annotation] = []
    image_ids = {image.id for image in decoded.images}
    for entry in decoded.annotations:
        owner, segments = entry.image_id, entry.segments_info
        fault = None
        if owner not in image_ids:
            fault = "is not listed"
        elif owner in pngs:
            fault = "has two entries"
        elif name_fault := _name_fault(entry.file_name, "folder of the PNGs"):
            fault = f"has the file_name {entry.file_name!r}; {name_fault}"
        elif len({segment.id for segment in segments}) < len(segments):
            fault = "has an id twice in its segments_info"
        if fault:
            raise CocosegError(f"{path}: annotations: image {owner} {fault}")
        pngs[owner] = png_dir / entry.file_name
        annotations += [Annotation(owner, s.category_id, s.id, s.iscrowd, s.area, IN_PNG) for s in segments]
    return _Content(decoded.images, annotations, decoded.categories), pngs


def is_inside(file_name: str) -> bool:
    """Tell whether a file name stays in the image folder, on any system."""
    path = PureWindowsPath(file_name)  # splits at \ and / and knows drives
    outside = path.drive or path.root or ".." in path.parts or "\0" in file_name
    return not outside and bool(path.name)


def _check(path: Path, content: _Content[Annotation]) -> None:
    if not content.images:
        raise CocosegError(f"{path}: no images in it")
    if not content.categories:
        raise CocosegError(f"{path}: no categories in it")
    _name_images(path, content.images)
    image_ids = _unique(path, "images", content.images)
    category_ids = _unique(path, "categories", content.categories)
    _name_annotations(content.annotations)
    for image in content.images:
        if image.width < 1 or image.height < 1 or image.width * image.height > MAX_PIXELS:
            raise CocosegError(
                f"{path}: image {image.id} is said to be {image.width}x{image.height} pixels; "
                f"between 1 and {MAX_PIXELS} pixels are allowed"
            )
        if fault := _name_fault(image.file_name, "image folder"):
            raise CocosegError(f"{path}: image {image.id} has the file_name {image.file_name!r}; {fault}")
    for annotation in content.annotations:
        if annotation.image_id not in image_ids:
            missing = f"image {annotation.image_id}"
        elif annotation.category_id not in category_ids:
            missing = f"category {annotation.category_id}"
        else:
            continue
        raise CocosegError(f"{path}: annotation {annotation.id} is of {missing}, which is not listed")


def _unique(path: Path, key: str, items: list[Image] | list[Category]) -> set[int]:
    first: dict[int, Image | Category] = {}
    for item in items:
        if first.setdefault(item.id, item) is not item:
            name = "file_name" if key == "images" else "name"
            both = " and ".join(repr(getattr(one, name)) for one in (first[item.id], item))
            raise CocosegError(f"{path}: the id {item.id} occurs twice in '{key}', for {both}")
    return set(first)


def _name_images(path: Path, images: Sequence[Image]) -> None:
    for number, image in enumerate(images):
        if image.file_name:
            continue
        if not image.coco_url:
            place = f"neither `file_name` nor `coco_url` - at `$.images[{number}]`"
            raise CocosegError(f"{path}: not a COCO instances file ({place})")
        name = unquote(image.coco_url.partition("?")[0].rpartition("/")[2])
        msgspec.structs.force_setattr(image, "file_name", name)


def _name_annotations(annotations: Sequence[Annotation]) -> None:
    """Name annotations by their place where they have no id, or one that a message can't show."""
    for number, annotation in enumerate(annotations, start=1):
        if not isinstance(annotation.id, int) and not (annotation.id and annotation.id.isprintable()):
            msgspec.structs.force_setattr(annotation, "id", f"{UNNAMED}{number}")


def _name_fault(file_name: str, folder: str) -> str | None:
    if not is_inside(file_name):
        return f"it must be a path inside the {folder}"
    if printable(file_name) != file_name:
        return "it holds a character that changes how text is shown; rename the file, in its folder too"
    return None
