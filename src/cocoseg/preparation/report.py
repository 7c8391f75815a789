"""The report on a prepared set: counts, warnings, pixels that overlaps hide."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nsmallest
from typing import Any

from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.masks import MaskRecord
from cocoseg.preparation.survey import COVERED

FIRST = 5  # ids that a warning names
MOST_SIZES = 5  # sizes of images that are listed
MOST_HIDDEN = 20  # classes of the table of overlaps
UNSEEN = "not a single pixel"


@dataclass(frozen=True)
class DataWarning:
    """A fault of the data that is no error, counted.

    Attributes:
        of: kind of thing that has the fault, as "annotation".
        what: the fault, in words.
        count: things that have it.
        first: the lowest ids, or file names, or names.
    """

    of: str
    what: str
    count: int
    first: list[int | str]

    def __str__(self) -> str:
        plural = "" if self.count == 1 else "es" if self.of.endswith("s") else "s"
        first = ", ".join(map(str, self.first)) + ", …" * (self.count > len(self.first))
        return f"{self.count} {self.of}{plural}: {self.what} ({first})"


@dataclass
class Tally:
    """Totals over masks, independent of the order in which they are drawn; classes by index.

    Attributes:
        masks: image -> mask.
        empty: images without a pixel of any class.
        images: images that show a class.
        pixels: pixels of a class.
        surveyed: images in the survey of overlaps.
        overlaps: sums of what `survey` returns.
        warnings: fault -> ids of the annotations that have it.
    """

    masks: dict[str, str] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    images: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    surveyed: int = 0
    overlaps: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    warnings: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: MaskRecord) -> None:
        self.masks[record.image] = record.mask
        shown = record.pixels.keys() - {0, IGNORE_INDEX}
        self.images.update(shown)
        if not shown:
            self.empty.add(record.image)
        self.pixels.update(record.pixels)
        if record.overlaps is not None:
            self.surveyed += 1
            for name, pixels in record.overlaps.items():
                self.overlaps[name].update(pixels)
        for what, ids in record.warnings.items():
            self.warnings[what] += ids


def find_warnings(coco: CocoFile, labels: LabelMap, tally: Tally) -> list[DataWarning]:
    """All warnings about the file and the chosen images."""
    found = [("annotation", what, ids) for what, ids in sorted(tally.warnings.items())]
    found += [("image", what, ids) for what, ids in coco.warnings().items()]
    unseen = [name for index, name in enumerate(labels.names) if index and not tally.images[index]]
    found.append(("class", UNSEEN, unseen))
    return [DataWarning(of, what, len(ids), nsmallest(FIRST, ids)) for of, what, ids in found if ids]


def build_report(
    coco: CocoFile,
    images: Sequence[Image],
    labels: LabelMap,
    rules: MasksConfig,
    tally: Tally,
    warnings: Iterable[DataWarning],
) -> dict[str, Any]:
    """The content of `report.json`; shares are between 0 and 1."""
    class_of, chosen = labels.index_of, {image.id for image in images}
    used = [a for a in coco.annotations if a.image_id in chosen and a.category_id in class_of]
    annotations = Counter(class_of[annotation.category_id] for annotation in used)
    crowd = sum(bool(annotation.iscrowd) for annotation in used)
    total = tally.pixels.total()
    return {
        "images": {
            "chosen": len(images),
            "in_file": len(coco.images),
            "empty": len(tally.empty),
            "sizes": dict(Counter(f"{image.width}x{image.height}" for image in images).most_common()),
        },
        "annotations": {"used": len(used), "crowd": crowd, "crowd_share": _share(crowd, len(used))},
        "pixels": {
            "total": total,
            "background_share": _share(tally.pixels[0], total),
            "ignored_share": _share(tally.pixels[IGNORE_INDEX], total),
        },
        "rules": {"overlap": rules.overlap, "rasterizer": rules.rasterizer, "crowd": rules.crowd},
        "warnings": [asdict(warning) for warning in warnings],
        "overlaps": _sum_up_overlaps(tally, labels, rules.overlap),
        "classes": [
            {
                "index": index,
                "name": label.name,
                "category_ids": list(label.category_ids),
                "images": tally.images[index],
                "annotations": annotations[index],
                "pixels": tally.pixels[index],
                "pixel_share": _share(tally.pixels[index], total),
            }
            for index, label in enumerate(labels.classes)
            if index
        ],
    }


def _sum_up_overlaps(tally: Tally, labels: LabelMap, rule: str) -> dict[str, Any]:
    """The classes of the surveyed images, those first that lose most pixels by the chosen rule."""
    covered, hidden = tally.overlaps[COVERED], tally.overlaps
    order = sorted(covered, key=lambda index: (-hidden[rule][index], index))
    return {
        "images": tally.surveyed,
        "hidden_share": {name: _share(hidden[name].total(), covered.total()) for name in OVERLAPS},
        "classes": [
            {
                "index": index,
                "name": labels.names[index],
                "covered_pixels": covered[index],
                "hidden_share": {name: _share(hidden[name][index], covered[index]) for name in OVERLAPS},
            }
            for index in order
        ],
    }


def as_markdown(report: Mapping[str, Any]) -> str:
    """The content of `report.md`."""
    images, annotations, pixels = report["images"], report["annotations"], report["pixels"]
    sizes = [f"{size} ({count})" for size, count in images["sizes"].items()]
    others = f" and {len(sizes) - MOST_SIZES} others" if len(sizes) > MOST_SIZES else ""
    rules = ", ".join(f"{key} `{value}`" for key, value in report["rules"].items())
    warnings = [f"- {DataWarning(**warning)}" for warning in report["warnings"]]
    columns = ("name", "index", "category_ids", "images", "annotations", "pixels", "pixel_share")
    lines = [
        "# What was prepared",
        "",
        f"- {images['chosen']} of {images['in_file']} images, {images['empty']} without a pixel of any class",
        f"- sizes (width x height): {', '.join(sizes[:MOST_SIZES])}{others}",
        f"- {annotations['used']} annotations, {_percent(annotations['crowd_share'])} of them crowds",
        f"- {pixels['total'] / 1e6:.3g} million pixels: {_percent(pixels['background_share'])} background, "
        f"{_percent(pixels['ignored_share'])} ignored",
        f"- rules: {rules}",
        "",
        "## Warnings",
        "",
        *(warnings or ["None."]),
        "",
        *_overlap_lines(report),
        "## Classes",
        "",
        *_table(
            ("class", "index", "category ids", "images", "annotations", "pixels", "share"),
            [[c[column] for column in columns] for c in report["classes"]],
        ),
    ]
    return "\n".join(lines) + "\n"


def _overlap_lines(report: Mapping[str, Any]) -> list[str]:
    """The classes that lose most by the chosen rule, with their losses by the others."""
    rule, overlaps = report["rules"]["overlap"], report["overlaps"]
    shares = "; ".join(f"`{name}` {_percent(share)}" for name, share in overlaps["hidden_share"].items())
    rows = [
        [c["name"], c["covered_pixels"], *c["hidden_share"].values()]
        for c in overlaps["classes"]
        if c["hidden_share"][rule] > 0
    ]
    head = (f"most hidden by `{rule}`", "covered", *(f"`{name}`" for name in OVERLAPS))
    return [
        "## What overlaps hide",
        "",
        "Of the pixels that a class covers, the share that a rule gives to others (`ignore`: to none), from "
        f"{overlaps['images']} of the {report['images']['chosen']} images, chosen by seed. "
        f"Over all classes: {shares}.",
        "",
        *([*_table(head, rows[:MOST_HIDDEN]), ""] if rows else []),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table: shares (float) as percentages, no text that ends a cell or a row."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return _percent(value)
        text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return " ".join(text.split()).replace("|", r"\|")

    return [f"| {' | '.join(map(cell, row))} |" for row in (head, ["---"] * len(head), *rows)]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
