"""`report.md` on a prepared set: counts, warnings, pixels that overlaps hide."""

import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.images.mask_files import MaskRecord
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.segmentations import AnnotationId
from cocoseg.preparation.survey import COVERED

MOST_HIDDEN = 20  # classes of the table of overlaps


class Tally:
    """Totals over masks; classes by index.

    Attributes:
        empty: number of images without a pixel of any class.
        images: images that show a class.
        pixels: pixels of a class, background (0) and ignored (255) included.
        warnings: fault -> ids of the annotations that have it.
        surveyed: number of images in the survey of overlaps.
        overlaps: sums of what `survey` returns.
        uprights: image with an EXIF rotation -> whether it is turned.
        bits: that the values of all images need; 0 where none has more than 8.
        faults: fault of image files -> their names.
    """

    def __init__(self, records: Iterable[MaskRecord]):
        self.empty = self.surveyed = self.bits = 0
        self.images: Counter[int] = Counter()
        self.pixels: Counter[int] = Counter()
        self.warnings: dict[str, list[AnnotationId]] = defaultdict(list)
        self.overlaps: dict[str, Counter[int]] = defaultdict(Counter)
        self.uprights: dict[str, bool] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        for record in records:
            self.empty += not record.visible
            self.images.update(record.visible)
            self.pixels.update(record.pixels)
            for fault, ids in record.warnings.items():
                self.warnings[fault] += ids
            self.bits = max(self.bits, record.bits)
            for fault in record.faults:
                self.faults[fault].append(record.image)
            if record.orientation != 1:
                self.uprights[record.image] = record.upright
            if record.doubt is not None:
                self.faults[record.doubt].append(record.image)
            if record.overlaps is not None:
                self.surveyed += 1
                for name, pixels in record.overlaps.items():
                    self.overlaps[name].update(pixels)


def report(
    total: int,
    sizes: Counter[tuple[int, int]],
    labels: LabelMap,
    tally: Tally,
    warnings: Sequence[str],
    facts: Sequence[str] = (),
    sections: Sequence[str] = (),
    annotations: Counter[int] | None = None,
) -> str:
    """The content of `report.md`, the report on some images of a set.

    Args:
        total: images of the set.
        sizes: width and height of the chosen ones.
        facts: more of the first lines.
        sections: lines of Markdown between the warnings and the classes.
        annotations: number for each class, where there are annotations.
    """
    images, pixels = sizes.total(), tally.pixels.total()
    (width, height), count = sizes.most_common(1)[0]
    classes = [
        [
            as_markdown(label.name),
            index,
            " ".join(map(str, label.category_ids)),
            tally.images[index],
            *([] if annotations is None else [annotations[index]]),
            tally.pixels[index],
            _percent(tally.pixels[index], pixels),
        ]
        for index, label in enumerate(labels.classes)
        if index
    ]
    head = ["class", "index", "category ids", "images", "annotations", "pixels", "share"]
    lines = [
        "# What was prepared",
        "",
        f"- {images} of {total} images, {tally.empty} without a pixel of any class",
        f"- sizes: {len(sizes)}, most often {width}x{height} (width x height, {count} images)",
        f"- {pixels / 1e6:.3g} million pixels: {_percent(tally.pixels[0], pixels)} background, "
        f"{_percent(tally.pixels[IGNORE_INDEX], pixels)} ignored",
        f"- {len(tally.uprights)} images with an EXIF rotation, {sum(tally.uprights.values())} turned by it",
        f"- values of up to {tally.bits or 8} bits",
        *(f"- {fact}" for fact in facts),
        "",
        "## Warnings",
        "",
        *([f"- {as_markdown(warning)}" for warning in warnings] or ["None."]),
        "",
        *sections,
        "## Classes",
        "",
        *_table([name for name in head if annotations is not None or name != "annotations"], classes),
    ]
    return "\n".join(lines) + "\n"


def annotation_report(
    coco: CocoFile,
    images: Sequence[Image],
    labels: LabelMap,
    rules: MasksConfig,
    tally: Tally,
    warnings: Sequence[str],
) -> str:
    """The content of `report.md`, the report on some images of an annotation file."""
    class_of, chosen = labels.index_of, {image.id for image in images}
    used = [a for a in coco.annotations if a.image_id in chosen and a.category_id in class_of]
    crowds = sum(bool(annotation.iscrowd) for annotation in used)
    facts = [
        f"{len(used)} annotations, {_percent(crowds, len(used))} of them crowds",
        f"rules: overlap `{rules.overlap}`, rasterizer `{rules.rasterizer}`, crowd `{rules.crowd}`",
    ]
    overlaps = ["## What overlaps hide", "", *_overlaps(labels, rules.overlap, tally, len(images)), ""]
    sizes = Counter((image.width, image.height) for image in images)
    counts = Counter(class_of[annotation.category_id] for annotation in used)
    return report(len(coco.images), sizes, labels, tally, warnings, facts, overlaps, counts)


def _overlaps(labels: LabelMap, rule: str, tally: Tally, images: int) -> list[str]:
    """The classes that lose most by the chosen rule, with their losses by the others."""
    if not tally.surveyed:
        return ["Nothing: in a panoptic file a pixel belongs to one segment."]
    covered, hidden = tally.overlaps[COVERED], tally.overlaps
    total = covered.total()
    shares = "; ".join(f"`{name}` {_percent(hidden[name].total(), total)}" for name in OVERLAPS)
    losses = sorted(covered, key=lambda index: (-hidden[rule][index], index))
    rows = [
        [
            as_markdown(labels.names[index]),
            covered[index],
            *(_percent(hidden[name][index], covered[index]) for name in OVERLAPS),
        ]
        for index in losses[:MOST_HIDDEN]
        if hidden[rule][index]
    ]
    head = [f"most hidden by `{rule}`", "covered", *(f"`{name}`" for name in OVERLAPS)]
    return [
        "Of the pixels that a class covers, the share that a rule gives to others (`ignore`: to none), from "
        f"{tally.surveyed} of the {images} images, chosen by seed. Over all classes: {shares}.",
        "",
        *_table(head, rows),
    ]


def as_markdown(text: str) -> str:
    """Return Markdown that shows a text as it is, without links, images or HTML."""
    return re.sub(r"([\\`*\[|])", r"\\\1", html.escape(text, quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table; no text ends a cell or a row."""

    def line(cells: Iterable[object]) -> str:
        texts = (" ".join(str(cell).split()) for cell in cells)
        return f"| {' | '.join(texts)} |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
