"""The contact sheet of a prepared set: some images with their masks laid over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.figures.overlay import overlay
from cocoseg.figures.text import GRAY, LINE, cut_text, legend, text_font
from cocoseg.files import save_png
from cocoseg.images.image_files import read_image
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.resizing import resize_mask

EXAMPLES = 16  # images on the sheet
COLUMNS = 4
WIDTH, HEIGHT = 320, 240  # pixels: an image is shown within these
LINES = 3  # the file name, two of class names
GAP = 8  # pixels


def write_contact_sheet(
    path: Path,
    pairs: Sequence[tuple[Path, Path]],
    encoding: MaskEncoding,
    orientations: Sequence[int] | None = None,
    bits: int | None = None,
) -> None:
    """Draw images and their masks: classes in their colors with outlines, ignored pixels striped.

    Args:
        pairs: files of image and mask.
        orientations: of EXIF, by which image and mask of each pair are turned; None: as they are.
        bits: see `read_image`.
    """
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    step_x, step_y = WIDTH + GAP, HEIGHT + LINES * LINE + GAP
    sheet = PIL.Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), "white")
    orientations = orientations or [1] * len(pairs)
    for index, ((image_file, mask_file), orientation) in enumerate(zip(pairs, orientations, strict=True)):
        image = read_image(image_file, upright=orientation != 1, bits=bits)
        mask = encoding.read(mask_file, orientation)
        tile = _draw_tile(image, image_file.name, mask, encoding.labels)
        sheet.paste(tile, (GAP + index % columns * step_x, GAP + index // columns * step_y))
    save_png(path, sheet, compress_level=3)


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
