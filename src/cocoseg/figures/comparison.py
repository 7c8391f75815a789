"""Comparison of predictions with targets: image | target | prediction | error, a row per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.text import GRAY, LINE, cut_text, hatch, legend, text_font
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.resizing import resize_mask
from cocoseg.scores import image_iou

LEAST, MOST = 160, 256  # pixels: longer side below which images are enlarged, and above which shrunk
GAP = 4  # pixels between panels and between rows


@dataclass(frozen=True)
class Example:
    """A validation image with its target and its predicted mask.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        target, predicted: (H, W) uint8 class indices; ignored pixels are 255 in the target.
    """

    image: np.ndarray
    target: np.ndarray
    predicted: np.ndarray

    @property
    def iou(self) -> float:
        """Mean IoU over the classes in the target, with background."""
        return image_iou(self.target, self.predicted)


def draw_comparison(example: Example, labels: LabelMap) -> PIL.Image.Image:
    """Draw a row of four panels with their titles, and the names of the classes below.

    Target and prediction are in the colors of the labels. Errors are red on a dim gray image. Ignored pixels
    are striped, except in the prediction, which shows every predicted class.
    """
    size = _panel_size(*example.target.shape)
    resized = PIL.Image.fromarray(example.image).resize(size, PIL.Image.Resampling.LANCZOS)
    gray = np.asarray(resized.convert("L"))[..., None] // 2
    red = np.concatenate((gray + 128, gray // 3, gray // 3), axis=2)
    counted = example.target != IGNORE_INDEX
    error = (example.target != example.predicted) & counted
    error_rate = error.sum() / max(1, int(counted.sum()))
    target, predicted, error = (
        resize_mask(mask, size[::-1]) for mask in (example.target, example.predicted, error.astype(np.uint8))
    )
    ignored = target == IGNORE_INDEX
    palette = labels.palette()
    panels = {
        f"image, IoU {example.iou:.2f}": np.asarray(resized),
        "target": hatch(palette[target], ignored),
        "prediction": palette[predicted],
        f"error: {error_rate:.1%}": hatch(np.where((error > 0)[..., None], red, gray), ignored),
    }
    width, height = size
    figure = PIL.Image.new("RGB", (4 * (width + GAP) - GAP, height + 2 * LINE), "white")
    draw, font = PIL.ImageDraw.Draw(figure), text_font()
    for index, (title, panel) in enumerate(panels.items()):
        x = index * (width + GAP)
        figure.paste(PIL.Image.fromarray(panel), (x, 0))
        draw.text((x, height + 1), cut_text(title, font, width), fill=GRAY, font=font)
    names = legend(labels, example.target, example.predicted, width=figure.width, lines=1)
    figure.paste(names, (0, height + LINE))
    return figure


def draw_sheet(examples: Sequence[Example], labels: LabelMap) -> PIL.Image.Image:
    """Draw a comparison row per example, the one with the lowest IoU first."""
    rows = [draw_comparison(example, labels) for example in sorted(examples, key=lambda e: e.iou)]
    tops = [0, *accumulate(row.height + GAP for row in rows)]
    sheet = PIL.Image.new("RGB", (max(row.width for row in rows), tops[-1] - GAP), "white")
    for row, top in zip(rows, tops, strict=False):
        sheet.paste(row, (0, top))
    return sheet


def spread(items: int, count: int) -> list[int]:
    """Choose at most `count` of `items` indices, evenly spread from the first to the last."""
    return np.linspace(0, items - 1, min(count, items)).round().astype(int).tolist()


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height of an image's panel: large images shrink, small ones grow by a whole factor."""
    longer = max(height, width)
    scale = MOST / longer if longer > MOST else -(-LEAST // longer)
    return max(1, round(width * scale)), max(1, round(height * scale))
