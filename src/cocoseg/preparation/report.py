"""The report on a prepared set: counts, warnings, pixels that overlaps hide."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nsmallest
from typing import Any

from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.masks import MaskRecord
from cocoseg.preparation.survey import Overlaps

FIRST = 5  # ids that a warning names
MOST_HIDDEN = 20  # classes of the table of overlaps
UNSEEN = "not a single pixel"


@dataclass
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
    count: int = 0
    first: list[int | str] = field(default_factory=list)

    def add(self, ids: Sequence[int | str]) -> None:
        self.count += len(ids)
        self.first = nsmallest(FIRST, [*self.first, *ids])

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
        overlaps: of the sampled images.
        warnings: fault -> annotations that have it.
    """

    masks: dict[str, str] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)
    images: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    overlaps: Overlaps = field(default_factory=Overlaps)
    warnings: dict[str, DataWarning] = field(default_factory=dict)

    def add(self, record: MaskRecord) -> None:
        self.masks[record.image] = record.mask
        shown = record.pixels.keys() - {0, IGNORE_INDEX}
        self.images.update(shown)
        if not shown:
            self.empty.add(record.image)
        self.pixels.update(record.pixels)
        if record.overlaps is not None:
            self.overlaps.add(record.overlaps)
        for what, ids in record.warnings.items():
            self.warnings.setdefault(what, DataWarning("annotation", what)).add(ids)


def find_warnings(coco: CocoFile, labels: LabelMap, tally: Tally) -> list[DataWarning]:
    """All warnings about the file and the chosen images."""
    warnings = [tally.warnings[what] for what in sorted(tally.warnings)]
    unseen = [name for index, name in enumerate(labels.names) if index and not tally.images[index]]
    for of, what, ids in (
        *(("image", what, ids) for what, ids in coco.warnings().items()),
        ("class", UNSEEN, unseen),
    ):
        if ids:
            warnings.append(DataWarning(of, what))
            warnings[-1].add(ids)
    return warnings


def build_report(
    coco: CocoFile,
    images: Sequence[Image],
    labels: LabelMap,
    rules: MasksConfig,
    tally: Tally,
    warnings: Iterable[DataWarning],
) -> dict[str, Any]:
    """The content of `report.json`; shares are between 0 and 1."""
    annotations: Counter[int] = Counter()
    crowd = 0
    class_of, chosen = labels.index_of, {image.id for image in images}
    for annotation in coco.annotations:
        if annotation.image_id in chosen and annotation.category_id in class_of:
            annotations[class_of[annotation.category_id]] += 1
            crowd += bool(annotation.iscrowd)
    total = tally.pixels.total()
    return {
        "images": {
            "chosen": len(images),
            "in_file": len(coco.images),
            "empty": len(tally.empty),
            "sizes": dict(Counter(f"{image.width}x{image.height}" for image in images).most_common()),
        },
        "annotations": {
            "used": annotations.total(),
            "crowd": crowd,
            "crowd_share": _share(crowd, annotations.total()),
        },
        "pixels": {
            "total": total,
            "background_share": _share(tally.pixels[0], total),
            "ignored_share": _share(tally.pixels[IGNORE_INDEX], total),
        },
        "rules": {"overlap": rules.overlap, "rasterizer": rules.rasterizer, "crowd": rules.crowd},
        "warnings": [asdict(warning) for warning in warnings],
        "overlaps": _overlaps(tally.overlaps, labels, rules.overlap),
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


def _overlaps(overlaps: Overlaps, labels: LabelMap, rule: str) -> dict[str, Any]:
    """The classes of the sampled images, those first that lose most pixels by the chosen rule."""
    covered, hidden = overlaps.covered, overlaps.hidden
    order = sorted(covered, key=lambda index: (-hidden[rule][index], index))
    return {
        "images": overlaps.images,
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
    rules = ", ".join(f"{key} `{value}`" for key, value in report["rules"].items())
    lines = [
        "# What was prepared",
        "",
        f"- {images['chosen']} of {images['in_file']} images, {images['empty']} without a pixel of any class",
        f"- sizes (width x height): {_sizes(images['sizes'])}",
        f"- {annotations['used']} annotations, {_percent(annotations['crowd_share'])} of them crowds",
        f"- {pixels['total'] / 1e6:.3g} million pixels: {_percent(pixels['background_share'])} background, "
        f"{_percent(pixels['ignored_share'])} ignored",
        f"- rules: {rules}",
        "",
        "## Warnings",
        "",
        *([f"- {DataWarning(**warning)}" for warning in report["warnings"]] or ["None."]),
        "",
        *_overlap_lines(report),
        "## Classes",
        "",
        "| class | index | category ids | images | annotations | pixels | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in report["classes"]:
        ids = " ".join(map(str, c["category_ids"]))
        lines.append(
            f"| {_cell(c['name'])} | {c['index']} | {ids} | {c['images']} | {c['annotations']} "
            f"| {c['pixels']} | {_percent(c['pixel_share'])} |"
        )
    return "\n".join(lines) + "\n"


def _overlap_lines(report: Mapping[str, Any]) -> list[str]:
    """The classes that lose most by the chosen rule, with their losses by the others."""
    rule, overlaps = report["rules"]["overlap"], report["overlaps"]
    shares = "; ".join(f"`{name}` {_percent(share)}" for name, share in overlaps["hidden_share"].items())
    lines = [
        "## What overlaps hide",
        "",
        "Of the pixels that a class covers, the share that a rule gives to others (`ignore`: to none), from "
        f"{overlaps['images']} of the {report['images']['chosen']} images, chosen by seed. "
        f"Over all classes: {shares}.",
        "",
    ]
    losers = [c for c in overlaps["classes"] if c["hidden_share"][rule] > 0]
    if losers:
        rules = " | ".join(f"`{name}`" for name in OVERLAPS)
        lines += [f"| most hidden by `{rule}` | covered | {rules} |", "|---|---|---|---|---|"]
    for c in losers[:MOST_HIDDEN]:
        row = " | ".join(_percent(c["hidden_share"][name]) for name in OVERLAPS)
        lines.append(f"| {_cell(c['name'])} | {c['covered_pixels']} | {row} |")
    return [*lines, ""] if losers else lines


def _sizes(sizes: Mapping[str, int]) -> str:
    shown = [f"{size} ({count})" for size, count in list(sizes.items())[:5]]
    return ", ".join(shown) + (f" and {len(sizes) - 5} others" if len(sizes) > 5 else "")


def _cell(name: str) -> str:
    """A name that neither ends the cell nor the row of a table."""
    return " ".join(name.split()).replace("|", r"\|")


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
