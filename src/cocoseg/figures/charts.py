"""Charts of a validation: confusion matrix, IoU per class, reliability of the probabilities."""

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
SHARES = 100  # pixels: height of a bar for all pixels in `reliability`
MARGIN = 8  # pixels around everything
BAR, GRID = (120, 160, 215), (222, 222, 222)  # colors in `reliability`
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


def reliability(correct: np.ndarray, pixels: np.ndarray, error: float) -> PIL.Image.Image:
    """Draw a reliability diagram: accuracy by confidence as bars, and below the share of the pixels.

    Bars below the diagonal are of pixels that the model is too sure of.

    Args:
        correct, pixels: of B bins of the confidence, which divide 0 to 1 evenly: (B,).
        error: expected calibration error.
    """
    font, small = text_font(12), text_font(10)
    left, top = 2 * MARGIN + text_width("0.0", font), HEAD + 2 * MARGIN
    bottom, floor = top + LENGTH, top + LENGTH + HEAD + SHARES + ROW
    figure = PIL.Image.new("RGB", (left + LENGTH + 2 * MARGIN, floor + 2 * HEAD), "white")
    draw = PIL.ImageDraw.Draw(figure)
    draw.text((MARGIN, 4), f"Expected calibration error: {error:.3f}", fill="black", font=text_font(13))
    for tenth in range(0, 11, 2):
        at, text = LENGTH * tenth // 10, f"{tenth / 10:.1f}"
        draw.line((left, bottom - at, left + LENGTH, bottom - at), fill=GRID)
        draw.text((left - 4, bottom - at), text, fill=GRAY, font=font, anchor="rm")
        draw.text((left + at, floor + 4), text, fill=GRAY, font=font, anchor="ma")
    shares = pixels / max(1, pixels.sum())
    edges = left + np.arange(len(pixels) + 1) * LENGTH // len(pixels)
    for index in np.flatnonzero(pixels).tolist():
        start, end = int(edges[index]), int(edges[index + 1])
        heights = (LENGTH * correct[index] / pixels[index], SHARES * shares[index])
        for base, height in zip((bottom, floor), heights, strict=True):
            draw.rectangle((start, base - round(height), end, base), fill=BAR, outline=GRAY)
        place = ((start + end) // 2, floor - round(SHARES * shares[index]) - 2)
        draw.text(place, f"{shares[index]:.0%}", fill=GRAY, font=small, anchor="mb")
    draw.line((left, bottom, left + LENGTH, top), fill="black", width=2)
    draw.text((left + MARGIN, top + 4), "accuracy; below the line: too sure", fill="black", font=font)
    draw.text((left + MARGIN, bottom + HEAD - 8), "share of the pixels", fill="black", font=font)
    caption = "confidence: the probability of the predicted class"
    draw.text((left + LENGTH // 2, floor + HEAD), caption, fill="black", font=font, anchor="ma")
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
