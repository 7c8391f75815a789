"""Charts of a validation: confusion matrix, the pairs most confused, IoU per class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.text import GRAY, Color, Font, cut_text, text_font, text_width
from cocoseg.labels import LabelMap

SIDE = 1000  # pixels of a matrix, about
CELLS = (5, 56)  # pixels of a cell, at least and at most
WITH_SHARES = 28  # pixels of a cell that has room for its share in figures
NAMES = 150  # pixels for the name of a class, at most
PAIRS = 20  # bars of confused pairs, at most
LENGTH = 420  # pixels of the longest bar
ROW = 16  # height in pixels of a bar with its text
HEAD = 24  # height in pixels of a title
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
    shown = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    shares = _by_row(matrix)[np.ix_(shown, shown)]
    cell = int(np.clip(SIDE // max(1, len(shown)), *CELLS))
    font = text_font(int(np.clip(cell - 1, 9, 13)))
    small = text_font(11)
    labels = [cut_text(names[index], font, NAMES) for index in shown]
    title = "Rows: target. Columns: predicted. Share of the row." + _absent(len(matrix) - len(shown))
    left = 2 * MARGIN + _widest(labels, font)
    top, side = HEAD + left, cell * len(shown)
    width = max(left + side, _widest([title], text_font(13)) + MARGIN) + MARGIN
    figure = PIL.Image.new("RGB", (width, top + side + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(figure)
    draw.text((MARGIN, 4), title, fill="black", font=text_font(13))
    for row in range(len(shown)):
        for column in range(len(shown)):
            x, y = left + column * cell, top + row * cell
            share = shares[row, column]
            ink = CORRECT if row == column else ERROR
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=_shade(ink, share))
            if cell >= WITH_SHARES and share >= 0.005:
                color = "white" if share > 0.45 else "black"
                middle = (x + cell // 2, y + cell // 2)
                draw.text(middle, f"{share:.2f}", fill=color, font=small, anchor="mm")
    every = -(-font.size // (cell + 1))  # names that would overlap are left out
    for index in range(0, len(shown), int(every)):
        center = index * cell + cell // 2
        draw.text((left - 4, top + center), labels[index], fill="black", font=font, anchor="rm")
        _draw_upwards(figure, left + center, top - 4, labels[index], font)
    return figure


def confused_pairs(matrix: np.ndarray, names: Sequence[str]) -> PIL.Image.Image:
    """Draw the pairs of target and predicted class with most errors, as shares of all errors (pixels).

    Args:
        matrix: (C, C) pixels, rows the target.
        names: of the C classes.
    """
    errors = matrix - np.diag(matrix.diagonal())
    total, shares = max(1, int(errors.sum())), _by_row(matrix)
    order = np.argsort(-errors, axis=None, kind="stable")[:PAIRS]
    rows = []
    for target, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        if errors[target, predicted]:
            share = errors[target, predicted] / total
            text = f"{share:.1%} ({shares[target, predicted]:.1%} of the class)"
            rows.append(Bar(f"{names[target]} taken for {names[predicted]}", share, ERROR, text))
    full = max((row.value for row in rows), default=1.0)
    return _bars("Most confused: share of all errors", rows, full, 2 * NAMES)


def iou_bars(iou: Sequence[float | None], labels: LabelMap) -> PIL.Image.Image:
    """Draw the IoU per class in the colors of the labels, the best first; absent classes are counted."""
    present = [(value, index) for index, value in enumerate(iou) if value is not None]
    present.sort(key=lambda pair: (-pair[0], pair[1]))
    rows = [
        Bar(labels.names[index], value, labels.classes[index].color, f"{value:.3f}")
        for value, index in present
    ]
    return _bars("IoU per class." + _absent(len(iou) - len(present)), rows, 1.0, NAMES)


class Bar(NamedTuple):
    """A horizontal bar: its name to the left, its text to the right."""

    name: str
    value: float
    color: Color
    text: str


def _bars(title: str, rows: Sequence[Bar], full: float, room: int) -> PIL.Image.Image:
    """Draw horizontal bars.

    Args:
        title: above them.
        rows: from top to bottom.
        full: value of a bar of the full length.
        room: pixels for a name, at most.
    """
    font, head = text_font(12), text_font(13)
    labels = [cut_text(row.name, font, room) for row in rows]
    left = 2 * MARGIN + _widest(labels, font)
    right = left + LENGTH + 2 * MARGIN + _widest([row.text for row in rows], font)
    width = max(right, _widest([title], head) + 2 * MARGIN)
    figure = PIL.Image.new("RGB", (width, HEAD + ROW * len(rows) + MARGIN), "white")
    draw = PIL.ImageDraw.Draw(figure)
    draw.text((MARGIN, 4), title, fill="black", font=head)
    for index, (label, row) in enumerate(zip(labels, rows, strict=True)):
        y = HEAD + index * ROW
        end = left + round(LENGTH * row.value / full)
        draw.text((left - 6, y + ROW // 2), label, fill="black", font=font, anchor="rm")
        draw.rectangle((left, y + 2, end, y + ROW - 3), fill=row.color, outline=GRAY)
        draw.text((end + 6, y + ROW // 2), row.text, fill=GRAY, font=font, anchor="lm")
    return figure


def _absent(count: int) -> str:
    """A sentence about absent classes; empty if there are none."""
    return f" {count} {'class does' if count == 1 else 'classes do'} not occur." if count else ""


def _widest(texts: Sequence[str], font: Font) -> int:
    """Width of the widest text in pixels."""
    return max((text_width(text, font) for text in texts), default=0)


def _by_row(matrix: np.ndarray) -> np.ndarray:
    """(C, C) float64: each row divided by its sum; zeros where that is zero."""
    return matrix / np.maximum(1, matrix.sum(1, keepdims=True))


def _shade(ink: Color, share: float) -> Color:
    """A color between nearly white (share 0) and the ink (share 1) in which small shares are visible, too."""
    strength = float(share) ** 0.6
    red, green, blue = (round(246 + (part - 246) * strength) for part in ink)
    return red, green, blue


def _draw_upwards(figure: PIL.Image.Image, x: int, bottom: int, text: str, font: Font) -> None:
    """Draw a text that runs from bottom to top, centered at `x`."""
    length = text_width(text, font) + 2
    height = round(font.size * 1.4)
    line = PIL.Image.new("RGB", (length, height), "white")
    PIL.ImageDraw.Draw(line).text((1, height // 2), text, fill="black", font=font, anchor="lm")
    figure.paste(line.rotate(90, expand=True), (x - height // 2, bottom - length))
