"""The results of an evaluation as text, JSON and tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cocoseg.evaluation.bootstrap import intervals
from cocoseg.evaluation.label_matching import Matching
from cocoseg.labels import LabelMap
from cocoseg.scores import SUMMARY, Counts, confusion


@dataclass
class View:
    """Predictions of one kind, such as those at the images' own size, compared with the targets.

    Attributes:
        title: heading of its column in the table.
        matrix: (C, C) int64 pixels over all images, rows the targets.
        loss: sum of the cross entropy over all pixels, or None where it is not known.
        images: counts of each image, (C,) int64.
    """

    title: str
    matrix: np.ndarray
    loss: float | None = 0.0
    images: list[Counts] = field(default_factory=list)

    def add(self, target: np.ndarray, predicted: np.ndarray, loss: float | None = None) -> None:
        """Count one more image.

        Args:
            target, predicted: (H, W) uint8 class indices of the data.
            loss: sum over its pixels.
        """
        matrix = confusion(target, predicted, len(self.matrix))
        self.matrix += matrix
        self.images.append(Counts.from_matrix(matrix))
        self.loss = None if loss is None or self.loss is None else self.loss + loss

    def image_counts(self) -> Counts:
        """Counts of each image, (N, C) int64."""
        return Counts(*map(np.stack, zip(*self.images, strict=True)))

    def scores(self, labels: LabelMap, ends: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """All scores and their intervals, for JSON: None where a score is not defined.

        Args:
            ends: as from `bootstrap.intervals`.
        """
        whole = Counts.from_matrix(self.matrix)
        pixels = int(self.matrix.sum())
        return {
            "loss": None if self.loss is None or not pixels else self.loss / pixels,
            **{name: _number(value) for name, value in whole.summary().items()},
            "intervals": {name: [_number(end) for end in ends[name]] for name in SUMMARY},
            "pixels": pixels,
            "iou": dict(zip(labels.unique_names, map(_number, whole.iou()), strict=True)),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        about: the model and the images, for metrics.json.
        labels: of the data.
        views: by their names in metrics.json; the first one is quoted.
        names: of the images.
        seed: of the bootstrap.
    """

    about: dict[str, Any]
    labels: LabelMap
    matching: Matching
    views: Mapping[str, View]
    names: Sequence[str]
    seed: int

    @property
    def quoted(self) -> View:
        return next(iter(self.views.values()))

    @cached_property
    def intervals(self) -> dict[str, dict[str, np.ndarray]]:
        """Low and high ends by view, see `bootstrap.intervals`."""
        return {name: intervals(view.image_counts(), seed=self.seed) for name, view in self.views.items()}

    @cached_property
    def image_counts(self) -> Counts:
        """Counts of each image in the quoted view, (N, C)."""
        return self.quoted.image_counts()

    @cached_property
    def image_scores(self) -> np.ndarray:
        """Mean IoU over the classes in each image's own target, with background: (N,) float64, NaN where all
        pixels are ignored. No score of the set is made from it."""
        return self.image_counts.summary()["miou_with_background"]

    def worst_first(self) -> list[int]:
        """Indices of the images by ascending score; images that are ignored as a whole come last."""
        scores = np.where(np.isnan(self.image_scores), np.inf, self.image_scores)
        return np.argsort(scores, kind="stable").tolist()

    def per_image(self) -> list[dict[str, Any]]:
        """The rows of per_image.csv."""
        scores = self.image_scores
        return [{"image": self.names[i], "iou": _number(scores[i])} for i in self.worst_first()]

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        matching = {
            "same": self.matching.is_same,
            "never_predicted": self.matching.never_predicted,
            "counted_as_background": self.matching.as_background,
        }
        scores = {name: view.scores(self.labels, self.intervals[name]) for name, view in self.views.items()}
        return {**self.about, "images": len(self.names), "labels": matching, **scores}

    def per_class(self) -> list[dict[str, Any]]:
        """The rows of per_class.csv, from the quoted view."""
        counts = Counts.from_matrix(self.quoted.matrix)
        low, high = self.intervals[next(iter(self.views))]["iou"]
        shown_in = (self.image_counts.target > 0).sum(0)
        columns = {
            "iou": counts.iou(),
            "iou_low": low,
            "iou_high": high,
            "precision": counts.precision(),
            "recall": counts.recall(),
            "dice": counts.dice(),
            "pixel_share": counts.share(),
        }
        return [
            {
                "index": index,
                "class": label.name,
                "category_ids": " ".join(map(str, label.category_ids)),
                **{name: _number(values[index]) for name, values in columns.items()},
                "images": int(shown_in[index]),
            }
            for index, label in enumerate(self.labels.classes)
        ]


def as_text(report: Report) -> str:
    """A table of the classes that occur, and one of the means, with a column for each view."""
    metrics, rows = report.metrics(), report.per_class()
    shown = [row for row in rows if row["iou"] is not None]
    titles = [*SUMMARY.values(), "loss (cross entropy)", *(row["class"] for row in shown)]
    width = max(map(len, titles))
    lines = [f"{'class':{width}}    IoU   95 % interval   precision  recall    pixels"]
    for row in shown:
        ends = _interval(row["iou_low"], row["iou_high"])
        lines.append(
            f"{row['class']:{width}}  {_text(row['iou'])}  {ends}   {_text(row['precision']):>9}  "
            f"{_text(row['recall']):>6}  {100 * row['pixel_share']:6.1f} %"
        )
    if absent := len(rows) - len(shown):
        lines.append(f"{'classes that do not occur':{width}}  {absent:5d}")
    views = {view.title: metrics[name] for name, view in report.views.items()}
    columns = [f"  {{:>{max(7, len(title))}}}" for title in views]
    means = f"{{:{width}}}  {{:14}}{''.join(columns)}"
    lines += ["", means.format("", " 95 % interval", *views)]
    ends = metrics[next(iter(report.views))]["intervals"]
    for key, title in SUMMARY.items():
        scores = [_text(view[key]) for view in views.values()]
        lines.append(means.format(title, _interval(*ends[key]), *scores))
    losses = [_text(view["loss"]) for view in views.values()]
    lines.append(means.format("loss (cross entropy)", "", *losses))
    return "\n".join(lines)


def _interval(low: float | None, high: float | None) -> str:
    return f"{_text(low)} to {_text(high)}"


def _text(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"


def _number(value: Any) -> float | None:
    """A plain number; None for NaN, which JSON has no way to write."""
    value = float(value)
    return None if math.isnan(value) else value
