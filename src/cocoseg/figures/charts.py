"""Charts of a validation: confusion matrix, IoU per class."""

from collections.abc import Sequence
from itertools import count

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.text import GRAY, Font, cut_text, text_font, text_width
from cocoseg.labels import LabelMap

SIDE = 1000  # pixels: side of a whole matrix, about
CELLS = (5, 56)  # pixels: side of a cell, at least and at most
WITH_SHARES = 28  # pixels: side of a cell from which on its share is written into it
NAMES = 150  # pixels: width of the name of a class at most
LENGTH = 420  # pixels: length of a bar for an IoU of 1
ROW = 16  # pixels: height of a bar with its text
HEAD = 24  # pixels: height of a title
MARGIN = 8  # pixels around everything
CORRECT, ERROR = (8, 48, 120), (190, 20, 20)  # colors of full cells on the diagonal and off it


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> PIL.Image.Image:
    """Draw a confusion matrix: rows are target classes, columns predicted classes.

    Each row is divided by its sum. Correct shares are blue, errors red. Classes that neither occur nor are
    predicted are left out.

    Args:
        matrix: (C, C) pixels, rows the target.
        names: of the C classes.
    """
    shown = np.flatnonzero(matrix.sum(0) + matrix.sum(1)) if matrix.any() else np.arange(1)
    # A row without a pixel stays zero.
    shares = (matrix / np.maximum(1, matrix.sum(1, keepdims=True)))[np.ix_(shown, shown)]
    cell = int(np.clip(SIDE // len(shown), *CELLS))
    font = text_font(int(np.clip(cell - 1, 9, 13)))
    labels = [cut_text(names[index], font, NAMES) for index in shown.tolist()]
    title = "Rows: target. Columns: predicted. Share of the row." + _absent(len(matrix) - len(shown))
    left = 2 * MARGIN + _widest(labels, font)
    top, side = HEAD + left, cell * len(shown)
    width = max(left + side, _widest([title], text_font(13)) + MARGIN) + MARGIN
    figure = PIL.Image.new("RGB", (width, top + side + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(figure)
    draw.text((MARGIN, 4), title, fill="black", font=text_font(13))
    ink = np.where(np.eye(len(shown), dtype=bool)[..., None], CORRECT, ERROR)
    colors = 246 + (ink - 246) * shares[..., None] ** 0.6  # small shares are visible, too
    cells = PIL.Image.fromarray(colors.round().astype(np.uint8))
    figure.paste(cells.resize((side, side), PIL.Image.Resampling.NEAREST), (left, top))
    for row, column in np.argwhere(shares >= 0.005).tolist() if cell >= WITH_SHARES else ():
        share = shares[row, column]
        middle = (left + column * cell + cell // 2, top + row * cell + cell // 2)
        color = "white" if share > 0.45 else "black"
        draw.text(middle, f"{share:.2f}", fill=color, font=text_font(11), anchor="mm")
    every = -(-font.size // (cell + 1))  # names that would overlap are left out
    for index in range(0, len(shown), int(every)):
        center = index * cell + cell // 2
        draw.text((left - 4, top + center), labels[index], fill="black", font=font, anchor="rm")
        _draw_upwards(figure, left + center, top - 4, labels[index], font)
    return figure


def iou_bars(iou: Sequence[float | None], labels: LabelMap) -> PIL.Image.Image:
    """Draw a bar per class for its IoU, in the colors of the labels, the best first; None has no bar."""
    present = [(value, index) for index, value in enumerate(iou) if value is not None]
    present.sort(key=lambda pair: (-pair[0], pair[1]))
    title = "IoU per class." + _absent(len(iou) - len(present))
    font, head = text_font(12), text_font(13)
    names = [cut_text(labels.names[index], font, NAMES) for _, index in present]
    left = 2 * MARGIN + _widest(names, font)
    right = left + LENGTH + 2 * MARGIN + text_width("0.000", font)
    width = max(right, text_width(title, head) + 2 * MARGIN)
    figure = PIL.Image.new("RGB", (width, HEAD + ROW * len(present) + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(figure)
    draw.text((MARGIN, 4), title, fill="black", font=head)
    for y, (value, index), name in zip(count(HEAD, ROW), present, names, strict=False):
        end = left + round(LENGTH * value)
        draw.text((left - 6, y + ROW // 2), name, fill="black", font=font, anchor="rm")
        draw.rectangle((left, y + 2, end, y + ROW - 3), fill=labels.classes[index].color, outline=GRAY)
        draw.text((end + 6, y + ROW // 2), f"{value:.3f}", fill=GRAY, font=font, anchor="lm")
    return figure


def _absent(number: int) -> str:
    """A sentence about absent classes; empty if there are none."""
    return f" {number} {'class does' if number == 1 else 'classes do'} not occur." if number else ""


def _widest(texts: Sequence[str], font: Font) -> int:
    """Width of the widest text in pixels."""
    return max((text_width(text, font) for text in texts), default=0)


def _draw_upwards(figure: PIL.Image.Image, x: int, bottom: int, text: str, font: Font) -> None:
    """Draw a text that runs from bottom to top, centered at `x`."""
    length = text_width(text, font) + 2
    height = round(font.size * 1.4)
    line = PIL.Image.new("RGB", (length, height), "white")
    PIL.ImageDraw.Draw(line).text((1, height // 2), text, fill="black", font=font, anchor="lm")
    figure.paste(line.rotate(90, expand=True), (x - height // 2, bottom - length))
