"""The contact sheet of a prepared set: some images with their masks laid over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.comparison import spread
from cocoseg.figures.overlay import overlay
from cocoseg.figures.text import GRAY, LINE, cut_text, legend, text_font
from cocoseg.files import save_png
from cocoseg.images.image_files import read_image
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.preparation.prepared_folder import PREVIEW, Pair
from cocoseg.resizing import resize_mask

EXAMPLES = 16  # images on the sheet
COLUMNS = 4
WIDTH, HEIGHT = 320, 240  # pixels: an image is shown within these
LINES = 3  # lines of text below an image: the file name, two of class names
GAP = 8  # pixels


def write_contact_sheet(
    folder: Path, image_dir: Path, pairs: Sequence[Pair], encoding: MaskEncoding, bits: int | None = None
) -> None:
    """Draw images and their masks: classes in their colors with outlines, ignored pixels striped.

    Args:
        folder: the prepared folder.
        pairs: those to choose from, evenly spread.
        bits: see `read_image`.
    """
    pairs = [pairs[index] for index in spread(len(pairs), EXAMPLES)]
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    step_x, step_y = WIDTH + GAP, HEIGHT + LINES * LINE + GAP
    sheet = PIL.Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    for index, pair in enumerate(pairs):
        file = image_dir / pair.image
        image = read_image(file, upright=pair.orientation != 1, bits=bits)
        mask = encoding.read(folder / pair.mask, pair.orientation)
        tile = _draw_tile(image, file.name, mask, encoding.labels)
        sheet.paste(tile, (GAP + index % columns * step_x, GAP + index // columns * step_y))
    save_png(folder / PREVIEW, sheet, compress_level=3)


def _draw_tile(image: PIL.Image.Image, name: str, mask: np.ndarray, labels: LabelMap) -> PIL.Image.Image:
    """Draw an image with its mask, (H, W) uint8, and below it the names of the file and of the classes."""
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = np.asarray(image.resize((width, height), PIL.Image.Resampling.LANCZOS))
    shown = PIL.Image.fromarray(overlay(resized, resize_mask(mask, (height, width)), labels))
    tile = PIL.Image.new("RGB", (WIDTH, HEIGHT + LINES * LINE), "white")
    tile.paste(shown, ((WIDTH - width) // 2, (HEIGHT - height) // 2))
    font = text_font()
    PIL.ImageDraw.Draw(tile).text((0, HEIGHT + 2), cut_text(name, font, WIDTH), fill=GRAY, font=font)
    tile.paste(legend(labels, mask, width=WIDTH, lines=LINES - 1), (0, HEIGHT + LINE))
    return tile
