"""Annotation files of another kind than COCO instances in pixels: named as what they are."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.preparation.segmentations import (
    Instance,
    SegmentationError,
    is_normalized,
    lies_within_one,
    parse_segmentation,
)

PANOPTIC = "a COCO panoptic file"  # which coco_file.py reads
# Keys that tell a format, those of the first annotation after a dot, those of the first entry of a list after
# `[]`; and what the file is, with a way to an instances file.
FORMATS: tuple[tuple[set[str], str], ...] = (
    ({"annotations.segments_info"}, PANOPTIC),
    ({"annotations.caption"}, "a COCO captions file; give the instances file"),
    ({"[].image_id"}, "a COCO results file, which lists no images and categories; give the instances file"),
    (
        {"shapes", "imagePath"},
        "a labelme file of one image; labelme2coco makes one COCO file of all",
    ),
    ({"[].data"}, "Label Studio's own JSON; export it as COCO"),
    ({"_via_img_metadata"}, "a project of the VGG Image Annotator; export its annotations as COCO"),
    ({"type", "features"}, "GeoJSON; convert it to COCO"),
    ({"items", "categories"}, "a Datumaro file; convert it by datum convert -f coco_instances"),
)


def other_format(content: bytes) -> str | None:
    """The format of a JSON file that is no COCO instances file, and what to do; None for unknown ones."""
    parts = dict[str, msgspec.Raw]
    try:
        top = msgspec.json.decode(content, type=parts | list[msgspec.Raw])
        entries, prefix = (top, "[].") if isinstance(top, list) else ([], "annotations.")
        if isinstance(top, dict):
            entries = msgspec.json.decode(top.get("annotations", b"[]"), type=list[msgspec.Raw])
        keys = {prefix + key for entry in entries[:1] for key in msgspec.json.decode(entry, type=parts)}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    keys |= top.keys() if isinstance(top, dict) else set()
    return next((text for telling, text in FORMATS if telling <= keys), None)


def refuse_normalized(path: Path, segmentations: Iterable[tuple[bytes, int, int]]) -> None:
    """Refuse a file of polygons that all look like shares of the image, as YOLO and Azure write them.

    Args:
        segmentations: JSON, height and width of the image. Of a usual file only the first polygon is read.

    Raises:
        CocosegError: says what to do.
    """
    found = False
    for segmentation, *size in segmentations:
        if segmentation.startswith(b"{"):  # runs have no coordinates
            continue
        try:
            outline = parse_segmentation(Instance(0, 0, False, segmentation), *size).outline
        except SegmentationError:
            return  # which those who draw it tell
        if not isinstance(outline, list) or not outline or max(size) <= 2:  # too small to tell
            continue
        if not lies_within_one(outline):
            return
        found = found or is_normalized(outline, *size)
    if found:
        raise CocosegError(
            f"{path}: all coordinates lie between 0 and 1, as shares of the image; they must be pixels: "
            "multiply x by the image's width and y by its height, or export them so"
        )
