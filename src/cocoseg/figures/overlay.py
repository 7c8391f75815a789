"""Masks laid over images, and the legend of their classes."""

import numpy as np
import PIL.Image

from cocoseg.figures.text import GAP, hatch, legend
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.resizing import borders

NARROWEST = 160  # pixels: least width of a legend


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelMap) -> np.ndarray:
    """Lay a mask over an image: classes in their colors with outlines, ignored pixels striped.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 class indices.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    colors = labels.palette()[mask]
    mixed = ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
    ignored = mask == IGNORE_INDEX
    drawn = np.where(borders(mask)[..., None], colors, mixed)
    return hatch(np.where(((mask > 0) & ~ignored)[..., None], drawn, image), ignored)


def with_legend(figure: PIL.Image.Image, mask: np.ndarray, labels: LabelMap) -> PIL.Image.Image:
    """Add the names of the classes in a mask, (H, W) uint8, below a figure."""
    names = legend(labels, mask, width=max(figure.width, NARROWEST), lines=len(labels))
    sheet = PIL.Image.new("RGB", (names.width, figure.height + GAP + names.height), "white")
    sheet.paste(figure)
    sheet.paste(names, (0, figure.height + GAP))
    return sheet
