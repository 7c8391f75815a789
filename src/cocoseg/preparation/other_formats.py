"""Formats of annotation files other than COCO instances, told by their keys."""

import msgspec

PANOPTIC = "a COCO panoptic file"  # which coco_file.py reads
# Keys that tell a format -> text of its error. Keys of the first annotation begin with `annotations.`,
# keys of the first entry of a list with `[].`.
FORMATS: tuple[tuple[set[str], str], ...] = (
    ({"annotations.segments_info"}, PANOPTIC),
    ({"annotations.caption"}, "a COCO captions file; give the instances file"),
    ({"[].image_id"}, "a COCO results file, which lists no images and categories; give the instances file"),
    ({"shapes", "imagePath"}, "a labelme file of one image; labelme2coco makes one COCO file of all"),
    ({"[].data"}, "Label Studio's own JSON; export it as COCO"),
    ({"_via_img_metadata"}, "a project of the VGG Image Annotator; export its annotations as COCO"),
    ({"type", "features"}, "GeoJSON; convert it to COCO"),
    ({"items", "categories"}, "a Datumaro file; convert it by datum convert -f coco_instances"),
)


def other_format(content: bytes) -> str | None:
    """Name the format of a JSON file that is no COCO instances file, and what to do; None if unknown."""
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
    return next((text for own_keys, text in FORMATS if own_keys <= keys), None)
