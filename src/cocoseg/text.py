"""Text and patterns that pictures share."""

from collections.abc import Sequence

import numpy as np
import PIL.ImageDraw
import PIL.ImageFont

from cocoseg.labels import LabelMap

LINE = 18  # pixels: height of a line of text
GREY = (96, 96, 96)  # of plain text
HATCH = 8  # pixels from stripe to stripe

Color = tuple[int, int, int]
Font = PIL.ImageFont.FreeTypeFont


def text_font(size: int = 12) -> Font:
    """Pillow's own font; `size` in pixels."""
    return PIL.ImageFont.load_default(size=size)


def hatched(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A paler picture with dark stripes in a part of it.

    Args:
        picture: (H, W, 3) uint8 RGB.
        where: (H, W) bool.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    result = picture.copy()
    result[where] = picture[where] // 2 + 96
    y, x = np.nonzero(where)
    stripes = (x + y) % HATCH < 2
    result[y[stripes], x[stripes]] = 64
    return result


def draw_names(
    draw: PIL.ImageDraw.ImageDraw,
    left: int,
    top: int,
    width: int,
    names: Sequence[tuple[str, Color]],
    font: Font,
    lines: int = 2,
) -> None:
    """Names on their colours in this order; how many more there are where they don't fit into the lines."""
    x, y, last = left, top, top + (lines - 1) * LINE
    for number, (name, color) in enumerate(names):
        text = fitting(draw, name, font, width - 8)
        extent = round(draw.textlength(text, font=font)) + 8
        if x + extent > left + width and y < last:
            x, y = left, y + LINE
        more = f"+{len(names) - number}"
        if y == last:  # the count of what follows must fit behind the name
            room = (
                left + width - x - (round(draw.textlength(more, font=font)) + 4) * (number < len(names) - 1)
            )
            if extent > room and x > left:
                draw.text((x, y + 1), more, fill=GREY, font=font)
                return
            text = fitting(draw, text, font, room - 8)
            extent = round(draw.textlength(text, font=font)) + 8
        draw.rectangle((x, y, x + extent - 1, y + LINE - 3), fill=color)
        draw.text((x + 4, y + 1), text, fill=readable_on(color), font=font)
        x += extent + 4


def lines_of(
    draw: PIL.ImageDraw.ImageDraw, width: int, names: Sequence[tuple[str, Color]], font: Font
) -> int:
    """How many lines `draw_names` needs for all of them."""
    x, lines = 0, 1
    for name, _ in names:
        extent = round(draw.textlength(fitting(draw, name, font, width - 8), font=font)) + 8
        if x + extent > width and x:
            x, lines = 0, lines + 1
        x += extent + 4
    return lines


def names_by_size(labels: LabelMap, *masks: np.ndarray, background: bool = False) -> list[tuple[str, Color]]:
    """Names and colours of the classes in some masks, (H, W) uint8, the one with most pixels first."""
    counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)[: len(labels)]
    order = (int(index) for index in np.argsort(-counts, kind="stable"))
    return [(labels.names[i], labels.classes[i].color) for i in order if counts[i] and (i or background)]


def readable_on(color: Color) -> str:
    """The colour of text on a ground."""
    dark = 299 * color[0] + 587 * color[1] + 114 * color[2] < 140_000  # luma, ITU-R BT.601
    return "white" if dark else "black"


def fitting(draw: PIL.ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """The text on one line, its end cut off where it is wider."""
    text = " ".join(text.split())
    while draw.textlength(text, font=font) > width and len(text) > 1:
        text = text[: -max(2, len(text) // 20)] + "…"
    return text
