"""Text, measured and cut to fit, and patterns that figures share."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from cocoseg.labels import LabelMap

LINE = 18  # pixels: height of a line of text
GRAY = (96, 96, 96)  # color of plain text
HATCH = 8  # pixels from stripe to stripe
PADDING = 8  # pixels by which the colored field is wider than the name in it
GAP = 4  # pixels between names
COUNT = 36  # pixels: width of a count of names such as "+254"

Color = tuple[int, int, int]
Font = PIL.ImageFont.FreeTypeFont


def text_font(size: int = 12) -> Font:
    """Pillow's built-in font; `size` in pixels."""
    font = PIL.ImageFont.load_default(size=size)
    assert isinstance(font, Font)  # Pillow's other font has no sizes
    return font


def hatch(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Make an image, (H, W, 3) uint8, paler and striped where `where`, (H, W) bool, is true."""
    result = image.copy()
    result[where] = image[where] // 2 + 96
    y, x = np.nonzero(where)
    stripes = (x + y) % HATCH < 2
    result[y[stripes], x[stripes]] = 64
    return result


def legend(labels: LabelMap, *masks: np.ndarray, width: int, lines: int) -> PIL.Image.Image:
    """Draw the names of the classes in some masks on their colors, the class with most pixels first.

    Background is left out.

    Args:
        masks: (H, W) uint8 class indices.
        width: of the legend in pixels.
        lines: number of lines at most, of LINE pixels; the last one ends with a count of the names that have
            no room.
    """
    pixels = (np.bincount(mask.ravel(), minlength=256) for mask in masks)
    counts = sum(pixels, start=np.zeros(256, np.int64))[: len(labels)]
    order = np.argsort(-counts, kind="stable")
    classes = [labels.classes[index] for index in order if index and counts[index]]
    font = text_font()
    sheet = PIL.Image.new("RGB", (width, LINE * max(1, min(lines, len(classes)))), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    x = y = 0
    for index, label in enumerate(classes):
        rest = len(classes) - index
        name = cut_text(label.name, font, width - PADDING - COUNT)
        extent = text_width(name, font) + PADDING
        is_last_line = y + LINE == sheet.height
        if x and x + extent > width - (COUNT if is_last_line and rest > 1 else 0):
            if is_last_line:
                draw.text((x, y + 1), f"+{rest}", fill=GRAY, font=font)
                break
            x, y = 0, y + LINE
        draw.rectangle((x, y, x + extent - 1, y + LINE - 3), fill=label.color)
        draw.text((x + PADDING // 2, y + 1), name, fill=readable_color(label.color), font=font)
        x += extent + GAP
    return sheet.crop((0, 0, width, y + LINE))


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
