"""Faults of annotations and images that are no errors: a line of warning for each kind."""

from collections.abc import Iterable, Sequence
from heapq import nsmallest

from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.report import Tally

FIRST = 5  # ids or names that a warning lists
# Faults of images; those of annotations are in segmentations.py, those of classes in unseen_classes.py.
NO_ANNOTATION = "no annotation, all background"
NOT_CHOSEN = "no annotation of the chosen classes, left out; data.subset.keep_empty=true keeps them"


def find_faults(
    coco: CocoFile, images: Iterable[Image], labels: LabelMap, tally: Tally, *, keeps_empty: bool
) -> list[str]:
    """Faults of the file and the chosen images, a line for each kind.

    Args:
        keeps_empty: images without annotations were not left out.
    """
    class_of = labels.index_of
    annotated = {a.image_id for a in coco.annotations if keeps_empty or a.category_id in class_of}
    empty = [image.id for image in (images if keeps_empty else coco.images) if image.id not in annotated]
    lines = [warning("annotation", fault, ids) for fault, ids in sorted(tally.warnings.items())]
    if empty:
        lines.append(warning("image", NO_ANNOTATION if keeps_empty else NOT_CHOSEN, empty))
    return lines


def warning(noun: str, fault: str, which: Sequence[int] | Sequence[str]) -> str:
    """A line on a fault, with the number of things that have it and the first of them."""
    plural = "es" if noun.endswith("s") else "s"
    first = ", ".join(map(str, nsmallest(FIRST, which))) + ", …" * (len(which) > FIRST)
    return f"{len(which)} {noun}{plural if len(which) > 1 else ''}: {fault} ({first})"
