"""Faults of annotations, images and classes: a line of warning for each kind.

The reasons why classes have no pixel are found when the masks are drawn. They are kept in `index.json`, so
that every run shows them.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import TypeVar

from cocoseg.config import MasksConfig
from cocoseg.errors import CocosegError, count_of
from cocoseg.labels import LabelMap, is_stuff_file
from cocoseg.preparation.coco_file import UNNAMED, Annotation, CocoFile, Image
from cocoseg.preparation.panoptic import IN_PNG
from cocoseg.preparation.prepared_folder import Index, PreparedSet
from cocoseg.preparation.report import Tally
from cocoseg.preparation.segmentations import SegmentationError

Key = TypeVar("Key", bound=Hashable)

FIRST = 5  # ids or names that a warning lists at most
# Faults; those of single annotations are in segmentations.py and panoptic.py.
NO_ANNOTATION = "no annotation, all background"
NO_ID = "no id; messages name them by their place in the file"
SHARED_ID = "used by several annotations; masks don't depend on ids, but messages name annotations by them"
SAME_NAME = (
    "same name as another class, but not the same class; data.labels merges categories, and "
    "data.subset.categories leaves some out"
)
NOT_CHOSEN = "no annotation of the chosen classes, left out; data.subset.keep_empty=true keeps them"

STUFF = (
    "a COCO stuff file: all people, animals and things are one class, other (id 183); "
    "data.subset.categories=stuff leaves it out, and the panoptic file has things and stuff"
)

UNSEEN = "not a single pixel"
NOT_IN_MASKS = "not in the masks of these images"
CROWDS = "all annotations are crowd regions; masks.crowd=draw draws them (CVAT exports brush masks as such)"
BOXES = "their annotations cover nothing; masks need polygons or RLE, boxes are not enough"
HIDDEN = "their annotations are hidden by others, ignored, or outside the images"
NOT_ANNOTATED = "no annotation on these images"
REASONS = (CROWDS, BOXES, HIDDEN, NOT_ANNOTATED)


def find_faults(
    coco: CocoFile, images: Iterable[Image], labels: LabelMap, tally: Tally, *, keeps_empty: bool
) -> list[str]:
    """Find faults of the file and the chosen images: a line for each kind.

    Args:
        keeps_empty: True where images without annotations are chosen, too.
    """
    class_of = labels.index_of
    annotated = {a.image_id for a in coco.annotations if keeps_empty or a.category_id in class_of}
    empty = [image.id for image in (images if keeps_empty else coco.images) if image.id not in annotated]
    # Ids of segments are unique within an image only.
    ids = [annotation.id for annotation in coco.annotations] if coco.pngs is None else []
    found: list[tuple[str, str, Sequence[int | str | None]]] = [
        *(("annotation", fault, which) for fault, which in sorted(tally.warnings.items())),
        *(("image", fault, names) for fault, names in sorted(tally.faults.items())),
        ("annotation", NO_ID, [i for i in ids if isinstance(i, str) and i.startswith(UNNAMED)]),
        ("annotation id", SHARED_ID, _repeated(ids)),
        ("image", NO_ANNOTATION if keeps_empty else NOT_CHOSEN, empty),
        ("class", SAME_NAME, _of_one_name(labels, tally.images)),
    ]
    lines = [warning(noun, fault, which) for noun, fault, which in found if which]
    return [STUFF, *lines] if is_stuff_file(class_of) else lines


def find_mask_faults(labels: LabelMap, tally: Tally) -> list[str]:
    """Find faults of the images and classes of a set of mask images: a line for each kind."""
    same = _of_one_name(labels, tally.images)
    lines = [warning("image", fault, names) for fault, names in sorted(tally.faults.items())]
    return lines + ([warning("class", SAME_NAME, same)] if same else [])


def find_unseen_in_masks(labels: LabelMap, seen: Collection[int]) -> list[str]:
    """Find the classes that no mask image shows, see `find_unseen`."""
    names = [" ".join(name.split()) for index, name in enumerate(labels.names) if index and index not in seen]
    return [warning("class", f"{UNSEEN}: {NOT_IN_MASKS}", names)] if names else []


def find_unseen(
    coco: CocoFile, images: Iterable[Image], labels: LabelMap, seen: Collection[int], rules: MasksConfig
) -> list[str]:
    """Find the reasons why classes have no pixel.

    Args:
        images: the chosen images.
        seen: class indices that occur in the masks.
        rules: `crowd` is used.

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
    """Find the reason why these annotations, all of one class, give no pixel."""
    if not annotations:
        return NOT_ANNOTATED
    outlined = [a for a in annotations if _has_outline(a, *sizes[a.image_id])]
    if not outlined:
        return BOXES
    return CROWDS if crowd != "draw" and all(a.iscrowd for a in outlined) else HIDDEN


def _has_outline(annotation: Annotation, height: int, width: int) -> bool:
    try:
        outline = annotation.parse(height, width).outline
    except SegmentationError:  # segmentations of panoptic files and crowd regions were not checked before
        return annotation.segmentation is IN_PNG
    return bool(outline) if isinstance(outline, list) else bool(outline[1::2].any())


def require_classes(prepared: PreparedSet, index: Index) -> None:
    """Refuse a training set without a pixel of any class. A validation set without any shows false alarms.

    Raises:
        CocosegError: gives the reasons.
    """
    if prepared.name == "train" and not any(index.pixels[1:]):
        raise CocosegError(f"{prepared.origin}: nothing to learn: {'; '.join(index.unseen)}")


def _repeated(items: Iterable[Key]) -> list[Key]:
    return [item for item, count in Counter(items).items() if count > 1]


def _of_one_name(labels: LabelMap, seen: Collection[int]) -> list[str]:
    """Find classes, background included, whose names differ in case, blanks, `_` and `-` at most."""
    keys = {
        index: " ".join(re.sub("[_-]", " ", unicodedata.normalize("NFKC", name)).casefold().split())
        for index, name in enumerate(labels.names)
        if index == 0 or index in seen
    }
    repeated = set(_repeated(keys.values()))
    shared = [labels.classes[index] for index, key in keys.items() if key in repeated]
    return [
        f"{' '.join(label.name.split())}{f' (id {label.ids})' if label.category_ids else ''}"
        for label in shared
    ]


def warning(noun: str, fault: str, which: Sequence[int | str | None]) -> str:
    """Write the line about a fault: the number of annotations, images or classes, and the first of them."""
    first = ", ".join(map(str, nsmallest(FIRST, which, key=_rank))) + ", …" * (len(which) > FIRST)
    return f"{count_of(len(which), noun)}: {fault} ({first})"


def _rank(name: int | str | None) -> tuple[int, str]:
    """Sort key: ids and places in the file in numerical order, names in alphabetical order."""
    number = str(name).removeprefix(UNNAMED)
    return (int(number), "") if number.isdecimal() and len(number) < 20 else (0, number)
