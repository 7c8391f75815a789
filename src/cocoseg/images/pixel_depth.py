"""Pixels of more than 8 bits: their values, the bits that they use, and their conversion to 8 bits.

Cameras, microscopes and scanners store values of 10 to 14 bits in 16-bit files. Scaled from 16 bits, only few
gray levels of them would be left.
"""

import sys

import numpy as np
import PIL.Image
import PIL.ImageFile

_NATIVE = {"little": "L", "big": "B"}[sys.byteorder]


def to_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert values of 0 to 2^bits - 1 to uint8; larger ones become 255."""
    top = 2**bits - 1
    values = np.minimum(values, top) if values.dtype.itemsize * 8 > bits else values
    if bits < 8:
        return (values.astype(np.uint16) * 255 // top).astype(np.uint8)
    return (values >> (bits - 8)).astype(np.uint8)


def gray_values(image: PIL.Image.Image) -> np.ndarray | None:
    """The values (H, W) of a grayscale image of more than 8 bits; None for all other images.

    Raises:
        ValueError: they have no known range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save them as 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise ValueError("pixels below 0 have no known range; save them as 8 or 16 bits without sign")
    return values


def low_bytes_mode(image: PIL.Image.Image) -> str | None:
    """The raw mode by which Pillow reads the lower bytes of colors of 16 bits a channel; None for all others.

    Pillow has no mode for such colors and reads their upper bytes. With the byte order swapped it reads the
    lower ones.
    """
    color, _, order = raw_mode(image).partition(";16")
    if color not in ("RGB", "RGBA", "RGBX") or order not in ("L", "B", "N"):
        return None
    order = _NATIVE if order == "N" else order
    return f"{color};16{'B' if order == 'L' else 'L'}"


def raw_mode(image: PIL.Image.Image) -> str:
    """The layout of the pixels in a file that is open but not loaded, such as `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def set_raw_mode(image: PIL.ImageFile.ImageFile, mode: str) -> None:
    """Change the layout by which an open file is loaded."""
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode)
        for tile in image.tile
    ]


def bits_in_use(values: np.ndarray) -> int:
    """The least number of bits that all values fit in; at least 1."""
    return max(1, int(values.max(initial=0)).bit_length())
