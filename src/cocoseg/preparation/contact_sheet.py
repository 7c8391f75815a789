"""The contact sheet of a prepared set: some images with their masks laid over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.overlay import overlay
from cocoseg.figures.text import GRAY, LINE, cut_text, draw_names, names_by_size, text_font
from cocoseg.files import save_png
from cocoseg.labels import LabelMap
from cocoseg.preparation.image_files import read_image
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.resizing import resize_mask

EXAMPLES = 16  # images on the sheet
COLUMNS = 4
WIDTH, HEIGHT = 320, 240  # pixels: an image is shown within these
LINES = 3  # the file name, two of class names
GAP = 8  # pixels


def write_contact_sheet(path: Path, pairs: Sequence[tuple[Path, Path]], encoding: MaskEncoding) -> None:
    """Draw images and their masks: classes in their colors with outlines, ignored pixels striped.

    Args:
        path: PNG file to write.
        pairs: files of image and mask.
        encoding: encoding of the masks.
    """
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    step_x, step_y = WIDTH + GAP, HEIGHT + LINES * LINE + GAP
    sheet = PIL.Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    for index, (image_file, mask_file) in enumerate(pairs):
        x, y = GAP + index % columns * step_x, GAP + index // columns * step_y
        _draw_tile(sheet, x, y, image_file, encoding.read(mask_file), encoding.labels)
    save_png(path, sheet, compress_level=3)


def _draw_tile(
    sheet: PIL.Image.Image, x: int, y: int, image_file: Path, mask: np.ndarray, labels: LabelMap
) -> None:
    """Draw one image at (x, y), the file's name and those of the classes below it.

    Args:
        mask: (H, W) uint8 class indices.
    """
    image = read_image(image_file)
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small_mask = resize_mask(mask, size[::-1])
    small_image = np.asarray(image.resize(size, PIL.Image.Resampling.LANCZOS))
    tile = PIL.Image.fromarray(overlay(small_image, small_mask, labels))
    sheet.paste(tile, (x + (WIDTH - size[0]) // 2, y + (HEIGHT - size[1]) // 2))
    draw = PIL.ImageDraw.Draw(sheet)
    font = text_font()
    draw.text((x, y + HEIGHT + 2), cut_text(image_file.name, font, WIDTH), fill=GRAY, font=font)
    draw_names(draw, x, y + HEIGHT + LINE, WIDTH, names_by_size(labels, mask), font)
