"""A contact sheet of images with their masks laid over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.encoding import MaskEncoding
from cocoseg.files import save_png
from cocoseg.images import read_image
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.text import GREY, LINE, draw_names, fitting, hatched, lines_of, names_by_size, text_font

EXAMPLES = 16
COLUMNS = 4
WIDTH, HEIGHT = 320, 240  # pixels of a picture at most
LINES = 3  # the file name, two of class names
GAP = 8
NARROWEST = 160  # pixels that a legend has


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
    save_png(path, sheet, compress_level=3)


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelMap) -> np.ndarray:
    """Lay a mask over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class indices.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    colors = labels.palette()[mask]
    mixed = ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
    edge = _edges(mask)
    result = np.where((mask > 0)[..., None], np.where(edge[..., None], colors, mixed), image)
    ignored = mask == IGNORE_INDEX
    result[ignored] = image[ignored]
    return hatched(result, ignored)


def with_legend(picture: PIL.Image.Image, mask: np.ndarray, labels: LabelMap) -> PIL.Image.Image:
    """The picture with the names of the classes in its mask, (H, W) uint8, below it, the largest first."""
    names = names_by_size(labels, mask, background=True)
    font = text_font()
    width = max(picture.width, NARROWEST)
    lines = lines_of(PIL.ImageDraw.Draw(picture), width, names, font)
    sheet = PIL.Image.new("RGB", (width, picture.height + lines * LINE + 4), "white")
    sheet.paste(picture)
    draw_names(PIL.ImageDraw.Draw(sheet), 0, picture.height + 4, width, names, font, lines)
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
    font = text_font()
    draw.text((x, y + HEIGHT + 2), fitting(draw, image_file.name, font, WIDTH), fill=GREY, font=font)
    draw_names(draw, x, y + HEIGHT + LINE, WIDTH, names_by_size(labels, mask), font)
