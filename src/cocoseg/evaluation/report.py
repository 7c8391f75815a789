"""The results of an evaluation as text, JSON and tables."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cocoseg.evaluation.bootstrap import intervals
from cocoseg.evaluation.boundary import boundary_counts
from cocoseg.evaluation.calibration import Calibration
from cocoseg.labels import LabelMap
from cocoseg.scores import SUMMARY, Counts, confusion

BOUNDARY, CALIBRATION = "mean_boundary_iou", "expected_calibration_error"  # keys of the quoted view
MEANS = {  # the lines of the printed table
    **SUMMARY,
    BOUNDARY: "boundary IoU (without background)",
    CALIBRATION: "expected calibration error",
    "loss": "loss (cross entropy)",
}


class View:
    """Predictions of one kind, such as those at the images' own size, compared with the targets.

    Args:
        title: heading of its column in the table.
        seed: of the bootstrap.

    Attributes:
        matrix: confusion matrix over all images, (C, C) int64 pixels; rows are targets.
        boundary: counts of the boundary regions over all images, (C,) int64; zeros without `add_boundary`.
        calibration: empty until the caller adds to it.
    """

    def __init__(self, title: str, labels: LabelMap, seed: int):
        self.title, self.labels, self.seed = title, labels, seed
        self.matrix = np.zeros((len(labels), len(labels)), np.int64)
        self.boundary, self.calibration = Counts(*np.zeros((3, len(labels)), np.int64)), Calibration()
        self._images: list[Counts] = []
        self._boundaries: list[Counts] = []
        self._loss: float | None = None

    def add(self, target: np.ndarray, predicted: np.ndarray, loss: float | None = None) -> None:
        """Count one more image.

        Args:
            target, predicted: (H, W) uint8 class indices.
            loss: sum of the cross entropy over its pixels, or None where it is not known.
        """
        matrix = confusion(target, predicted, len(self.matrix))
        self.matrix += matrix
        self._images.append(Counts.from_matrix(matrix))
        if loss is not None:
            self._loss = (self._loss or 0.0) + loss

    def add_boundary(self, target: np.ndarray, predicted: np.ndarray) -> None:
        """Count the boundary regions of the image that was added last, (H, W) uint8 class indices."""
        counts = boundary_counts(target, predicted, len(self.matrix))
        self.boundary = Counts(*map(np.add, self.boundary, counts))
        self._boundaries.append(counts)

    @cached_property
    def image_counts(self) -> Counts:
        """Counts of each image, (N, C) int64."""
        return Counts(*map(np.stack, zip(*self._images, strict=True)))

    @cached_property
    def image_scores(self) -> np.ndarray:
        """Mean IoU of each image over the classes in its target, with background: (N,) float64.

        NaN where all pixels are ignored. The scores of the set are not computed from these.
        """
        return self.image_counts.summary()["miou_with_background"]

    @cached_property
    def intervals(self) -> dict[str, np.ndarray]:
        """Low and high ends, see `bootstrap.intervals`; with boundaries also those of the boundary IoU."""
        found = intervals(self.image_counts, seed=self.seed)
        if self._boundaries:
            boundaries = Counts(*map(np.stack, zip(*self._boundaries, strict=True)))
            found[BOUNDARY] = intervals(boundaries, seed=self.seed)["miou"]
        return found

    def worst_first(self) -> list[int]:
        """Indices of the images by ascending score. Images that are ignored as a whole come last."""
        return np.argsort(self.image_scores, kind="stable").tolist()

    def scores(self) -> dict[str, Any]:
        """All scores and their intervals, for JSON. None where a score is not defined."""
        whole, pixels = Counts.from_matrix(self.matrix), int(self.matrix.sum())
        names = self.labels.unique_names
        means = {**whole.summary(), BOUNDARY: self.boundary.summary()["miou"]}
        by_class = {"iou": whole.iou()} | ({"boundary_iou": self.boundary.iou()} if self._boundaries else {})
        return {
            "loss": None if self._loss is None or not pixels else self._loss / pixels,
            **{key: number(value) for key, value in means.items()},
            CALIBRATION: number(self.calibration.error()),
            "intervals": {key: [*map(number, ends)] for key, ends in self.intervals.items() if key in means},
            "pixels": pixels,
            **{key: dict(zip(names, map(number, values), strict=True)) for key, values in by_class.items()},
        }

    def per_class(self) -> list[dict[str, Any]]:
        """The rows of per_class.csv."""
        counts = Counts.from_matrix(self.matrix)
        low, high = self.intervals["iou"]
        shown_in = (self.image_counts.target > 0).sum(0)
        columns = {
            "iou": counts.iou(),
            "iou_low": low,
            "iou_high": high,
            "boundary_iou": self.boundary.iou(),
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
                **{name: number(values[index]) for name, values in columns.items()},
                "images": int(shown_in[index]),
            }
            for index, label in enumerate(self.labels.classes)
        ]


def as_text(views: Sequence[View]) -> str:
    """Format a table of the classes that occur in the first view, and one of the means of all views."""
    rows, scores = views[0].per_class(), [view.scores() for view in views]
    shown = [row for row in rows if row["iou"] is not None]
    titles = [*MEANS.values(), *(row["class"] for row in shown)]
    width = max(map(len, titles))
    lines = [f"{'class':{width}}    IoU   95 % interval   boundary  precision  recall    pixels"]
    for row in shown:
        ends = _interval(row["iou_low"], row["iou_high"])
        lines.append(
            f"{row['class']:{width}}  {_text(row['iou'])}  {ends}   {_text(row['boundary_iou']):>8}  "
            f"{_text(row['precision']):>9}  {_text(row['recall']):>6}  {100 * row['pixel_share']:6.1f} %"
        )
    if absent := len(rows) - len(shown):
        lines.append(f"{'classes that do not occur':{width}}  {absent:5d}")
    headings = [view.title for view in views]
    means = f"{{:{width}}}  {{:14}}" + "".join(f"  {{:>{max(7, len(title))}}}" for title in headings)
    lines += ["", means.format("", " 95 % interval", *headings)]
    for key, title in MEANS.items():
        ends = _interval(*scores[0]["intervals"].get(key, ()))
        lines.append(means.format(title, ends, *(_text(view[key]) for view in scores)))
    return "\n".join(lines)


def number(value: Any) -> float | None:
    """Convert to a plain number; NaN, which JSON can't hold, to None."""
    value = float(value)
    return None if math.isnan(value) else value


def _interval(*ends: float | None) -> str:
    return " to ".join(map(_text, ends))


def _text(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"
