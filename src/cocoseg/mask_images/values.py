"""Pixels of mask files as numbers.

| file                                                  | value of a pixel                      |
|-------------------------------------------------------|---------------------------------------|
| grayscale of 1 to 16 bits, palette                    | the number in the file                |
| RGB, RGBA without transparency, palette if `expanded` | COLOR + red + 256·green + 65,536·blue |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.images.image_files import open_image
from cocoseg.images.pixel_depth import gray_values, low_bytes_mode, raw_mode

COLOR = 1 << 24  # added to colors, so that they differ from numbers
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
MOST_VALUES = 4096  # different values that a mask may have
_SCALED = {"L;2": 85, "L;4": 17}  # factors by which Pillow multiplies gray of 2 and 4 bits


def read_values(path: Path, *, expanded: bool) -> np.ndarray:
    """Read the values of a mask file: (H, W) uint8, uint16, or uint32 for colors.

    Args:
        expanded: read the colors of a palette, not its numbers.

    Raises:
        CocosegError: it can't be read, is of a lossy format, has several pages or transparent pixels, or
            pixels that are neither of the above.
    """
    with open_image(path) as image:
        if image.format not in LOSSLESS:
            raise CocosegError(f"{path}: {image.format} changes pixels, so it can't hold a mask; give PNG")
        if getattr(image, "n_frames", 1) > 1:
            raise CocosegError(
                f"{path}: several pages, any of which may be the mask; save the mask alone, as PNG"
            )
        scale, is_deep = _SCALED.get(raw_mode(image), 1), low_bytes_mode(image) is not None
        image.load()
        if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] != 255:
            raise CocosegError(f"{path}: transparent pixels have no class; save it as RGB or palette")
        if not is_deep and (image.mode in ("RGB", "RGBA") or (image.mode == "P" and expanded)):
            packed = np.asarray(image.convert("RGB").convert("RGBA")).view("<u4")[..., 0]
            return packed & 0xFFFFFF | COLOR
        values = gray_values(image)
        if values is None and image.mode in ("1", "L", "LA", "P") and not is_deep:
            values = np.asarray(image.convert("L") if image.mode == "LA" else image).astype(np.uint8) // scale
        if values is None or values.max(initial=0) > 0xFFFF:
            raise CocosegError(
                f"{path}: pixels of mode {image.mode} or of too many bits; a mask has a palette, gray of at "
                "most 16 bits, or RGB of 8"
            )
        return values.astype(np.uint16) if values.itemsize > 1 else values


def count_values(path: Path, values: np.ndarray) -> dict[int, int]:
    """Count the pixels of each value.

    Raises:
        CocosegError: there are more than MOST_VALUES values.
    """
    if values.itemsize == 4:
        found, counts = np.unique(values, return_counts=True)
    else:
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    if len(found) > MOST_VALUES:
        raise CocosegError(f"{path}: {len(found)} different values, as in a photograph or a smoothed mask")
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def look_up(values: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Look values up in a table: class indices (H, W) uint8; KeyError where a value is not in it."""
    # Of this array, only the pages that are read or written take memory.
    indices = np.zeros(2 * COLOR, dtype=np.uint16)
    indices[list(table)] = [index + 1 for index in table.values()]
    found = indices[values]
    if not found.all():
        raise KeyError
    return (found - 1).astype(np.uint8)


def color_value(color: Sequence[int]) -> int:
    """The value of an RGB color of 8 bits a channel."""
    red, green, blue = color
    return COLOR + red + (green << 8) + (blue << 16)


def show_value(value: int) -> str:
    """A value as a user types it in `data.classes` and `data.ignore`."""
    return f"[{value & 255},{value >> 8 & 255},{value >> 16 & 255}]" if value >= COLOR else str(value)
