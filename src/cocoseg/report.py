"""The report on a prepared set: what is in it, what overlaps hide, what may be wrong."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from cocoseg.coco import CocoFile, Image
from cocoseg.config import OVERLAPS, MasksConfig
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.masks import MaskRecord

FIRST = 5  # ids that a warning names
UNSEEN = "not a single pixel"


@dataclass
class Doubt:
    """Something that may be wrong, counted.

    Attributes:
        of: what it was found in, as "annotation".
        what: in words.
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
    """Totals over masks, whatever the order that they are drawn in; classes by index.

    Attributes:
        masks: image -> mask.
        empty: images without a pixel of any class.
        images: images that show a class.
        pixels, covered, hidden: as of `cocoseg.survey.Survey`.
        doubts: what may be wrong -> how often.
    """

    masks: dict[str, str] = field(default_factory=dict)
    images: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    covered: Counter[int] = field(default_factory=Counter)
    hidden: dict[str, Counter[int]] = field(default_factory=lambda: {rule: Counter() for rule in OVERLAPS})
    doubts: dict[str, Doubt] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)

    def add(self, record: MaskRecord) -> None:
        found = record.survey
        self.masks[record.image] = record.mask
        shown = found.pixels.keys() - {0, IGNORE_INDEX}
        self.images.update(shown)
        if not shown:
            self.empty.add(record.image)
        self.pixels.update(found.pixels)
        self.covered.update(found.covered)
        for rule, pixels in found.hidden.items():
            self.hidden[rule].update(pixels)
        for what, ids in found.doubts.items():
            self.doubts.setdefault(what, Doubt("annotation", what)).add(ids)


def find_doubts(coco: CocoFile, labels: LabelMap, tally: Tally) -> list[Doubt]:
    """Everything that may be wrong with the file and the chosen images."""
    doubts = [tally.doubts[what] for what in sorted(tally.doubts)]
    unseen = [name for index, name in enumerate(labels.names) if index and not tally.images[index]]
    for of, what, ids in (
        *(("image", what, ids) for what, ids in coco.doubts().items()),
        ("class", UNSEEN, unseen),
    ):
        if ids:
            doubts.append(Doubt(of, what))
            doubts[-1].add(ids)
    return doubts


def build_report(
    coco: CocoFile,
    images: Sequence[Image],
    labels: LabelMap,
    rules: MasksConfig,
    tally: Tally,
    doubts: Iterable[Doubt],
) -> dict[str, Any]:
    """What `report.json` holds; shares are between 0 and 1."""
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
        "hidden_share": {
            rule: _share(tally.hidden[rule].total(), tally.covered.total()) for rule in OVERLAPS
        },
        "warnings": [
            {"of": doubt.of, "what": doubt.what, "count": doubt.count, "first": doubt.first}
            for doubt in doubts
        ],
        "classes": [
            {
                "index": index,
                "name": label.name,
                "category_ids": list(label.category_ids),
                "images": tally.images[index],
                "annotations": annotations[index],
                "pixels": tally.pixels[index],
                "pixel_share": _share(tally.pixels[index], total),
                "covered_pixels": tally.covered[index],
                "hidden_share": {
                    rule: _share(tally.hidden[rule][index], tally.covered[index]) for rule in OVERLAPS
                },
            }
            for index, label in enumerate(labels.classes)
            if index
        ],
    }


def as_markdown(report: Mapping[str, Any]) -> str:
    """The same as `report.md`."""
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
        *([f"- {Doubt(**warning)}" for warning in report["warnings"]] or ["None."]),
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
    """Which classes lose most by the chosen rule, and what the others would do."""
    rule = report["rules"]["overlap"]
    shares = "; ".join(f"`{name}` {_percent(share)}" for name, share in report["hidden_share"].items())
    lines = [
        "## What overlaps hide",
        "",
        "Of the pixels that a class covers, the share that a rule gives to others (`ignore`: to none). "
        f"Over all classes: {shares}.",
        "",
    ]
    losers = [c for c in report["classes"] if c["hidden_share"][rule] > 0]
    losers.sort(key=lambda c: (-c["hidden_share"][rule] * c["covered_pixels"], c["index"]))
    if losers:
        rules = " | ".join(f"`{name}`" for name in OVERLAPS)
        lines += [
            f"| most hidden by `{rule}` | covered | {rules} | best kept by |",
            "|---|---|---|---|---|---|",
        ]
    for c in losers[:20]:
        hidden = c["hidden_share"]
        best = min(OVERLAPS, key=hidden.__getitem__)
        row = " | ".join(_percent(hidden[name]) for name in OVERLAPS)
        lines.append(f"| {_cell(c['name'])} | {c['covered_pixels']} | {row} | `{best}` |")
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
