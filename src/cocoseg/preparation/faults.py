"""Faults of annotations, images and classes that are no errors: a line of warning for each kind."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import TypeVar

from cocoseg.config import AUTO
from cocoseg.images.pixel_depth import USUAL, bits_in_use, bits_in_usual_use
from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import UNNAMED, CocoFile, Image
from cocoseg.preparation.report import Tally

Key = TypeVar("Key", int, str)

FIRST = 5  # ids or names that a warning lists
SPARE_BITS = 2  # more, in use by a few values only, cost contrast
# More faults of annotations are in segmentations.py, more of classes in unseen_classes.py.
NO_ANNOTATION = "no annotation, all background"
NO_ID = "no id; messages name them by their place in the file"
SHARED_ID = "on several annotations each; masks don't depend on ids, but messages name annotations by them"
SAME_NAME = (
    "called like another class, and trained against it; data.labels merges categories, and "
    "data.subset.categories leaves some out"
)
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
    ids = [annotation.id for annotation in coco.annotations]
    found = [("annotation", fault, which) for fault, which in sorted(tally.warnings.items())]
    found += [("image", fault, names) for fault, names in sorted(tally.faults.items())]
    found += [
        ("annotation", NO_ID, [i for i in ids if isinstance(i, str) and i.startswith(UNNAMED)]),
        ("annotation id", SHARED_ID, _repeated(ids)),
        ("image", NO_ANNOTATION if keeps_empty else NOT_CHOSEN, empty),
        ("class", SAME_NAME, _of_one_name(labels, tally.images)),
    ]
    return [warning(noun, fault, which) for noun, fault, which in found if which]


def find_depth_faults(depths: Mapping[int, int], bits: int | str) -> list[str]:
    """Contrast of images of more than 8 bits that is lost or cut.

    Args:
        depths: number of bits -> values of that many bits.
        bits: `data.bits`.
    """
    used = bits_in_use(depths)
    if used is None:
        return []
    images = "images of more than 8 bits"
    if bits == AUTO:
        usual = bits_in_usual_use(depths)
        few = f"{images}: scaled from {used} bits, but {100 * USUAL:g} % of the values need at most {usual}"
        return (
            [f"{few}; data.bits={usual} gives these the full contrast"] if used - usual > SPARE_BITS else []
        )
    cut = sum(count for length, count in depths.items() if length > bits) / sum(depths.values())
    return [f"{images}: {100 * cut:.1f} % of the values are beyond data.bits={bits}, and cut"] if cut else []


def _repeated(items: Iterable[Key]) -> list[Key]:
    return [item for item, count in Counter(items).items() if count > 1]


def _of_one_name(labels: LabelMap, seen: Collection[int]) -> list[str]:
    """Those of background and the classes seen that share a name, but for case, blanks, `_` and `-`."""
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


def warning(noun: str, fault: str, which: Sequence[int | str]) -> str:
    """A line on a fault, with the number of things that have it and the first of them."""
    plural = "es" if noun.endswith("s") else "s"
    first = ", ".join(map(str, nsmallest(FIRST, which, key=_rank))) + ", …" * (len(which) > FIRST)
    return f"{len(which)} {noun}{plural if len(which) > 1 else ''}: {fault} ({first})"


def _rank(name: int | str) -> tuple[int, str]:
    """Sort key: ids and places in the file by number, names by letter."""
    number = str(name).removeprefix(UNNAMED)
    return (int(number), "") if number.isdecimal() else (0, number)
