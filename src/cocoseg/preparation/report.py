"""`report.md` of a prepared set: counts, warnings, and the pixels that overlaps hide."""

import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.errors import count_of
from cocoseg.images.mask_files import MaskRecord
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.segmentations import AnnotationId
from cocoseg.preparation.survey import COVERED

MOST_HIDDEN = 20  # rows of the table of overlaps at most


class Tally:
    """Totals over masks.

    Attributes:
        empty: number of images without a pixel of any class.
        images: class index -> number of images that show it.
        pixels: class index -> number of pixels, background (0) and ignored (255) included.
        warnings: warning -> ids of the annotations that it is about.
        surveyed: number of images in the survey of overlaps.
        overlaps: sums of the results of `survey`.
        uprights: name of an image with an EXIF rotation -> True if it is turned.
        bits: number of bits that the values of all images need; 0 where none has more than 8.
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
    """Write the content of `report.md`.

    Args:
        total: number of images before the choice.
        sizes: width and height of the chosen images, counted.
        facts: further lines of the first list.
        sections: lines of Markdown between the warnings and the classes.
        annotations: class index -> number of annotations; None where there are no annotations.
    """
    images, pixels = sizes.total(), tally.pixels.total()
    (width, height), count = sizes.most_common(1)[0]
    classes = []
    for index, label in enumerate(labels.classes[1:], start=1):
        ids, area = " ".join(map(str, label.category_ids)), tally.pixels[index]
        number = [] if annotations is None else [annotations[index]]
        row = [as_markdown(label.name), index, ids, tally.images[index], *number, area]
        classes.append([*row, _percent(area, pixels)])
    head = ["class", "index", "category ids", "images", "annotations", "pixels", "share"]
    lines = [
        "# What was prepared",
        "",
        f"- {images} of {count_of(total, 'image')}, {tally.empty} without a pixel of any class",
        f"- sizes: {len(sizes)}, most often {width}x{height} (width x height, {count_of(count, 'image')})",
        f"- {pixels / 1e6:.3g} million pixels: {_percent(tally.pixels[0], pixels)} background, "
        f"{_percent(tally.pixels[IGNORE_INDEX], pixels)} ignored",
        f"- {count_of(len(tally.uprights), 'image')} with an EXIF rotation, "
        f"{sum(tally.uprights.values())} turned by it",
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
    """Write the content of `report.md` for images of an annotation file."""
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
    """List the classes of which the chosen rule hides most, with the shares that each rule hides."""
    if not tally.surveyed:
        return ["Nothing: in a panoptic file a pixel belongs to one segment."]
    covered, hidden = tally.overlaps[COVERED], tally.overlaps
    total = covered.total()
    shares = "; ".join(f"`{name}` {_percent(hidden[name].total(), total)}" for name in OVERLAPS)
    losses = sorted(covered, key=lambda index: (-hidden[rule][index], index))
    rows = []
    for index in losses[:MOST_HIDDEN]:
        if hidden[rule][index]:
            lost = (_percent(hidden[name][index], covered[index]) for name in OVERLAPS)
            rows.append([as_markdown(labels.names[index]), covered[index], *lost])
    head = [f"most hidden by `{rule}`", "covered", *(f"`{name}`" for name in OVERLAPS)]
    return [
        "Of the pixels that a class covers, the share that a rule gives to others (`ignore`: to none), from "
        f"{tally.surveyed} of the {images} images, chosen by seed. Over all classes: {shares}.",
        "",
        *_table(head, rows),
    ]


def as_markdown(text: str) -> str:
    """Escape a text, so that Markdown shows it as it is, without links, images or HTML."""
    return re.sub(r"([\\`*\[|])", r"\\\1", html.escape(text, quote=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table. Texts are already escaped; line breaks in them become blanks."""

    def line(cells: Iterable[object]) -> str:
        texts = (" ".join(str(cell).split()) for cell in cells)
        return f"| {' | '.join(texts)} |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
