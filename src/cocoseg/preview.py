"""A contact sheet of images with their masks laid over them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from cocoseg.encoding import MaskEncoding
from cocoseg.files import write_bytes
from cocoseg.images import read_image
from cocoseg.labels import IGNORE_INDEX, LabelMap

EXAMPLES = 16
COLUMNS = 4
WIDTH, HEIGHT = 320, 240  # pixels of a picture at most
LINE = 18  # pixels: height of a line of text
LINES = 3  # the file name, two of class names
GAP = 8
NARROWEST = 160  # pixels that a legend has
HATCH = 8  # pixels from stripe to stripe over ignored parts


def write_preview(path: Path, pairs: Sequence[tuple[Path, Path]], encoding: MaskEncoding) -> None:
    """Draw images and their masks: classes in their colours with outlines, ignored pixels striped.

    Args:
        path: of the PNG file to write.
        pairs: files of image and mask.
        encoding: of the masks.
    """
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    step_x, step_y = WIDTH + GAP, HEIGHT + LINES * LINE + GAP
    sheet = PIL.Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    for number, (image_file, mask_file) in enumerate(pairs):
        x, y = GAP + number % columns * step_x, GAP + number // columns * step_y
        _draw_tile(sheet, x, y, image_file, encoding.read(mask_file), encoding.labels)
    buffer = BytesIO()
    sheet.save(buffer, format="PNG", compress_level=3)
    write_bytes(path, buffer.getvalue())


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelMap) -> np.ndarray:
    """Lay a mask over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class indices.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(labels)] = [label.color for label in labels.classes]
    colors = palette[mask]
    mixed = ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
    edge = _edges(mask)
    result = np.where((mask > 0)[..., None], np.where(edge[..., None], colors, mixed), image)
    ignored = mask == IGNORE_INDEX
    result[ignored] = image[ignored] // 2 + 96
    y, x = np.nonzero(ignored)
    stripes = (x + y) % HATCH < 2
    result[y[stripes], x[stripes]] = 64
    return result


def with_legend(picture: PIL.Image.Image, mask: np.ndarray, labels: LabelMap) -> PIL.Image.Image:
    """The picture with the names of the classes in its mask, (H, W) uint8, below it, the largest first."""
    font = PIL.ImageFont.load_default(size=12)
    draw = PIL.ImageDraw.Draw(picture)
    counts = np.bincount(mask.ravel(), minlength=256)[: len(labels)]
    room = max(picture.width, NARROWEST)
    places = []
    x, y = 0, 0
    for index in np.argsort(-counts, kind="stable").tolist():
        if counts[index]:
            text = _fitting(draw, labels.names[index], font, room - 8)
            width = round(draw.textlength(text, font=font)) + 8
            if x and x + width > room:
                x, y = 0, y + LINE
            places.append((x, y, width, text, labels.classes[index].color))
            x += width + 4
    sheet = PIL.Image.new("RGB", (room, picture.height + y + LINE + 4), "white")
    sheet.paste(picture)
    draw = PIL.ImageDraw.Draw(sheet)
    for x, y, width, text, color in places:
        _draw_name(draw, x, picture.height + 4 + y, width, text, color, font)
    return sheet


def _edges(mask: np.ndarray) -> np.ndarray:
    """Pixels beside one of another class: (H, W) bool."""
    edge = np.zeros(mask.shape, dtype=bool)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _draw_tile(
    sheet: PIL.Image.Image, x: int, y: int, image_file: Path, mask: np.ndarray, labels: LabelMap
) -> None:
    image = read_image(image_file)
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small_mask = np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST))
    small_image = np.asarray(image.resize(size, PIL.Image.Resampling.LANCZOS))
    picture = PIL.Image.fromarray(overlay(small_image, small_mask, labels))
    sheet.paste(picture, (x + (WIDTH - size[0]) // 2, y + (HEIGHT - size[1]) // 2))
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(size=12)
    draw.text((x, y + HEIGHT + 2), _fitting(draw, image_file.name, font, WIDTH), fill=(96, 96, 96), font=font)
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX]
    visible = [int(index) for index in np.argsort(-counts, kind="stable") if index and counts[index]]
    _draw_names(
        draw, x, y + HEIGHT + LINE, [(labels.names[i], labels.classes[i].color) for i in visible], font
    )


def _draw_names(
    draw: PIL.ImageDraw.ImageDraw,
    left: int,
    top: int,
    names: Sequence[tuple[str, tuple[int, int, int]]],
    font: PIL.ImageFont.FreeTypeFont,
) -> None:
    """Names on their colours, the largest class first; how many more there are where they don't fit."""
    x, y = left, top
    for number, (name, color) in enumerate(names):
        text = _fitting(draw, name, font, WIDTH - 8)
        width = round(draw.textlength(text, font=font)) + 8
        if x + width > left + WIDTH and y == top:
            x, y = left, top + LINE
        more = f"+{len(names) - number}"
        if y > top:  # the last line: the count of what follows must fit behind the name
            room = (
                left + WIDTH - x - (round(draw.textlength(more, font=font)) + 4) * (number < len(names) - 1)
            )
            if width > room and x > left:
                draw.text((x, y + 1), more, fill=(96, 96, 96), font=font)
                return
            text = _fitting(draw, text, font, room - 8)
            width = round(draw.textlength(text, font=font)) + 8
        _draw_name(draw, x, y, width, text, color, font)
        x += width + 4


def _draw_name(
    draw: PIL.ImageDraw.ImageDraw,
    x: int,
    y: int,
    width: int,
    text: str,
    color: tuple[int, int, int],
    font: PIL.ImageFont.FreeTypeFont,
) -> None:
    draw.rectangle((x, y, x + width - 1, y + LINE - 3), fill=color)
    draw.text((x + 4, y + 1), text, fill="white" if is_dark(color) else "black", font=font)


def is_dark(color: tuple[int, int, int]) -> bool:
    """Whether text on it had better be white."""
    return 299 * color[0] + 587 * color[1] + 114 * color[2] < 140_000  # luma, ITU-R BT.601


def _fitting(draw: PIL.ImageDraw.ImageDraw, text: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, its end cut off where it is wider."""
    text = " ".join(text.split())
    while draw.textlength(text, font=font) > width and len(text) > 1:
        text = text[: -max(2, len(text) // 20)] + "…"
    return text
