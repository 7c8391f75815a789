"""Classes without a pixel in any mask: the reasons, and the refusal of a set that shows no class at all.

The reasons are found once, when the masks are drawn, and kept in `index.json`, so that every run names them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from cocoseg.config import MasksConfig
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import Annotation, CocoFile, Image
from cocoseg.preparation.faults import warning
from cocoseg.preparation.prepared_folder import PreparedSet
from cocoseg.preparation.segmentations import Instance, SegmentationError, parse_segmentation

UNSEEN = "not a single pixel"
CROWDS = (
    "all annotations are crowd regions, as CVAT and Datumaro export brush masks; masks.crowd=draw draws them"
)
BOXES = "their annotations cover nothing; masks need polygons or RLE, boxes are not enough"
HIDDEN = "their annotations are hidden by others, ignored, or outside the images"
NOT_ANNOTATED = "no annotation on these images"
REASONS = (CROWDS, BOXES, HIDDEN, NOT_ANNOTATED)


def find_unseen(
    coco: CocoFile, images: Iterable[Image], labels: LabelMap, seen: Collection[int], rules: MasksConfig
) -> list[str]:
    """Find why classes have no pixel.

    Args:
        images: those that masks were drawn of.
        seen: class indices that occur in the masks.
        rules: `crowd` counts here.

    Returns:
        a line for each reason, with the first classes in the order of their names.
    """
    class_of, sizes = labels.index_of, {image.id: (image.height, image.width) for image in images}
    annotations: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in coco.annotations:
        index = class_of.get(annotation.category_id)
        if index is not None and index not in seen and annotation.image_id in sizes:
            annotations[index].append(annotation)
    names: dict[str, list[str]] = defaultdict(list)
    for index, name in enumerate(labels.names):
        if index and index not in seen:
            names[_reason(annotations[index], sizes, rules.crowd)].append(" ".join(name.split()))
    return [warning("class", f"{UNSEEN}: {reason}", names[reason]) for reason in REASONS if names.get(reason)]


def _reason(annotations: Sequence[Annotation], sizes: Mapping[int, tuple[int, int]], crowd: str) -> str:
    """The reason why these annotations of one class draw nothing."""
    if not annotations:
        return NOT_ANNOTATED
    outlined = [a for a in annotations if _has_outline(a, *sizes[a.image_id])]
    if not outlined:
        return BOXES
    return CROWDS if crowd != "draw" and all(a.iscrowd for a in outlined) else HIDDEN


def _has_outline(annotation: Annotation, height: int, width: int) -> bool:
    instance = Instance(annotation.id, 0, False, bytes(annotation.segmentation))
    try:
        outline = parse_segmentation(instance, height, width).outline
    except SegmentationError:  # of a crowd region that is not drawn, and so not checked
        return False
    return bool(outline) if isinstance(outline, list) else bool(outline[1::2].any())


def require_classes(prepared: PreparedSet, index: Mapping[str, Any]) -> None:
    """Refuse a training set without a pixel of any class; `index` is the content of its `index.json`.

    A validation set may show false alarms only.

    Raises:
        CocosegError: gives the reasons.
    """
    if prepared.name == "train" and not any(index["pixels"][1:]):
        raise CocosegError(f"{prepared.annotation_file}: nothing to learn: {'; '.join(index['unseen'])}")
