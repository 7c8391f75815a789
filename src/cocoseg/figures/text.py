"""Text, measured and cut to fit, and patterns that figures share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.ImageDraw
import PIL.ImageFont

from cocoseg.labels import LabelMap

LINE = 18  # pixels: height of a line of text
GRAY = (96, 96, 96)  # color of plain text
HATCH = 8  # pixels from stripe to stripe
PADDING = 8  # pixels that a name's color is wider than the name
CHIP_GAP = 4  # pixels between names
COUNT = 36  # pixels: room for a count of names such as "+254"

Color = tuple[int, int, int]
Font = PIL.ImageFont.FreeTypeFont


def text_font(size: int = 12) -> Font:
    """Pillow's built-in font; `size` in pixels."""
    return PIL.ImageFont.load_default(size=size)


def hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Make a part of an image paler, with dark stripes.

    Args:
        image: (H, W, 3) uint8 RGB.
        where: (H, W) bool.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    result = image.copy()
    result[where] = image[where] // 2 + 96
    y, x = np.nonzero(where)
    stripes = (x + y) % HATCH < 2
    result[y[stripes], x[stripes]] = 64
    return result


class Chip(NamedTuple):
    """A name on its color: place and width in pixels, and the line that it is on."""

    x: int
    line: int
    width: int
    text: str
    color: Color


def lay_out(names: Sequence[tuple[str, Color]], width: int, font: Font) -> list[Chip]:
    """Lay names out in lines of `width` pixels, each of them cut so that a count has room behind it."""
    chips: list[Chip] = []
    x = line = 0
    for name, color in names:
        text = cut_text(name, font, width - PADDING - COUNT)
        extent = text_width(text, font) + PADDING
        if x and x + extent > width:
            x, line = 0, line + 1
        chips.append(Chip(x, line, extent, text, color))
        x += extent + CHIP_GAP
    return chips


def draw_names(
    draw: PIL.ImageDraw.ImageDraw,
    left: int,
    top: int,
    width: int,
    names: Sequence[tuple[str, Color]],
    font: Font,
    lines: int = 2,
) -> None:
    """Draw names on their colors, in this order; on the last line a count of those that have no room.

    Args:
        left, top, width: in pixels.
        lines: number of lines of LINE pixels.
    """
    chips = lay_out(names, width, font)
    shown = [chip for chip in chips if chip.line < lines]
    if len(shown) < len(chips):
        while shown[-1].x and shown[-1].x + shown[-1].width > width - COUNT:
            shown.pop()
        last = shown[-1]
        place = left + last.x + last.width + CHIP_GAP, top + last.line * LINE + 1
        draw.text(place, f"+{len(chips) - len(shown)}", fill=GRAY, font=font)
    for chip in shown:
        x, y = left + chip.x, top + chip.line * LINE
        draw.rectangle((x, y, x + chip.width - 1, y + LINE - 3), fill=chip.color)
        draw.text((x + PADDING // 2, y + 1), chip.text, fill=readable_color(chip.color), font=font)


def names_by_size(labels: LabelMap, *masks: np.ndarray, background: bool = False) -> list[tuple[str, Color]]:
    """Names and colors of the classes in some masks, (H, W) uint8, the one with most pixels first."""
    counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)[: len(labels)]
    order = (int(index) for index in np.argsort(-counts, kind="stable"))
    return [(labels.names[i], labels.classes[i].color) for i in order if counts[i] and (i or background)]


def readable_color(background: Color) -> str:
    """Color of text that is readable on a background."""
    luma = 299 * background[0] + 587 * background[1] + 114 * background[2]  # times 1000, ITU-R BT.601
    return "white" if luma < 140_000 else "black"


def text_width(text: str, font: Font) -> int:
    """Width of a line of text in pixels."""
    return round(font.getlength(text))


def cut_text(text: str, font: Font, width: float) -> str:
    """Put text on one line and cut its end off where it is wider than `width` pixels."""
    text = " ".join(text.split())
    while font.getlength(text) > width and len(text) > 1:
        text = text[: -max(2, len(text) // 20)] + "…"
    return text
