"""Image files: accepted formats, checks, reading as RGB."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.TiffImagePlugin

from cocoseg.config import FULL_BITS
from cocoseg.errors import CocosegError
from cocoseg.images.exif import TRANSPOSED, is_upright_size, orientation_of, turn
from cocoseg.images.image_reader import open_bounded
from cocoseg.images.pixel_depth import (
    bits_in_use,
    gray_values,
    low_bytes_mode,
    raw_mode,
    set_raw_mode,
    to_bytes,
)

# No other format is opened, because Pillow hands some, such as EPS, to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Warnings about parts of a file that are not read.
BANDS = "more bands than red, green and blue, of which the others are not read"
PAGES = "several pages, of which only the first is read"
UPPER_BITS = (
    "16 bits a channel, of which only the upper 8 are read; save as RGB or gray, without transparency"
)
CUT = "values beyond the {} bits of the training images, which are cut"
UNKNOWN_BITS = f"pixels of more than 8 bits, unlike the training images; scaled from {FULL_BITS} bits"

_WIDTH, _HEIGHT, _PHOTOMETRIC, _SAMPLES, _EXTRA = 256, 257, 262, 277, 338  # tags of TIFF
_COLORS = {2: 3, 5: 4, 6: 3, 8: 3}  # photometric interpretation -> bands of a color; else one
_ALPHA = (1, 2)  # kinds of extra bands that are transparency


class Inspection(NamedTuple):
    """The result of checking an image file.

    Attributes:
        size: width and height as stored.
        orientation: EXIF orientation, 1 to 8.
        bits: number of bits that its values need; 0 where pixels have no more than 8.
        faults: warnings about parts that are not read.
    """

    size: tuple[int, int]
    orientation: int
    bits: int
    faults: list[str]


def check_image(path: Path, width: int, height: int, said_by: str = "the annotation file says") -> Inspection:
    """Check that an image can be read to its last byte and has this size, as stored or turned by EXIF.

    Args:
        said_by: the source of width and height, for messages.

    Raises:
        CocosegError: names the file.
    """
    with open_image(path) as image:
        faults, low_mode = _find_faults(image), low_bytes_mode(image)  # no longer known once it is loaded
        # Read from the header, so that a huge image of another size is never decoded.
        size, listed = _stored_size(image), (width, height)
        is_swapped = size != listed and size[::-1] == listed
        orientation = orientation_of(image) if size == listed or is_swapped else 1
        if size != listed and orientation not in TRANSPOSED:
            raise CocosegError(
                f"{path}: the image is {size[0]}x{size[1]} (width x height), {said_by} {width}x{height}"
                + "; width and height are swapped there, and the image has no EXIF rotation: correct the file"
                * is_swapped
            )
        image.draft("L", (1, 1))  # decodes a JPEG at an eighth of its size, but reads the whole file
        values = _deep_values(path, image, low_mode)
        return Inspection(size, orientation, 0 if values is None else bits_in_use(values), faults)


def read_image(path: Path, *, upright: bool = False, bits: int | None = None) -> PIL.Image.Image:
    """Read an image as RGB, 8 bits a channel.

    Args:
        upright: turn it by its EXIF orientation, as viewers do; else its pixels are as stored.
        bits: number of bits that values in files of more than 8 bits are scaled from; larger values become
            white. None: FULL_BITS.

    Raises:
        CocosegError: it can't be read.
    """
    return read_with_faults(path, upright=upright, bits=bits)[0]


def read_with_faults(path: Path, *, upright: bool, bits: int | None) -> tuple[PIL.Image.Image, list[str]]:
    """Read an image as `read_image` does. Returns it with warnings about parts that are lost."""
    with open_image(path) as image:
        faults, low_mode = _find_faults(image), low_bytes_mode(image)  # no longer known once it is loaded
        comes_upright = image.format == "TIFF"  # Pillow turns it by itself
        orientation = 1 if upright == comes_upright else orientation_of(image)
        values = _deep_values(path, image, low_mode)
        if values is None:
            rgb = image.convert("RGB")
        else:
            rgb = _from_values(values, bits)
            if bits is None:
                faults.append(UNKNOWN_BITS)
            elif values.max() >= 1 << bits:
                faults.append(CUT.format(bits))
        return turn(rgb, orientation, back=comes_upright), faults


def reading_of(path: Path, width: int, height: int) -> bool | None:
    """Tell whether only the upright image has this size, see `is_upright_size`.

    Raises:
        CocosegError: it can't be read.
    """
    with open_image(path) as image:
        return is_upright_size((width, height), _stored_size(image), orientation_of(image))


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height as stored, from the file's header alone; None where it can't be read."""
    try:
        with open_image(path) as image:
            return _stored_size(image)
    except CocosegError:
        return None


def read_orientation(path: Path) -> int:
    """Read the EXIF orientation of an image, 1 to 8.

    Raises:
        CocosegError: it can't be read.
    """
    with open_image(path) as image:
        return orientation_of(image)


def to_rgb(image: PIL.Image.Image, bits: int | None = None) -> PIL.Image.Image:
    """Convert an image of any mode to RGB. Gray of more than 8 bits is scaled from `bits`.

    Raises:
        ValueError: its pixels have no known range.
    """
    values = gray_values(image)
    return image.convert("RGB") if values is None else _from_values(values, bits)


@contextmanager
def open_image(path: Path) -> Iterator[PIL.ImageFile.ImageFile]:
    """Open an image of one of FORMATS. All errors, also of the block, become a CocosegError with its path."""
    try:
        with open_bounded(path, FORMATS) as image:
            yield image
    except (CocosegError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise CocosegError(f"{path}: the image is missing") from error
    except PIL.UnidentifiedImageError as error:
        reason = f"none of {', '.join(FORMATS)}"
        if _begins_as_tiff(path):
            reason = (
                "a TIFF whose bands or pixels Pillow does not know; save red, green and blue as 8 or 16 bits"
            )
        raise CocosegError(f"{path}: not a readable image ({reason})") from error
    except Exception as error:  # damaged bytes make decoders raise about anything
        reason = str(getattr(error, "strerror", None) or error)
        raise CocosegError(f"{path}: not a readable image ({reason})".replace("\n", " ")) from error


def _begins_as_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in TIFF_MAGIC


def _stored_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Width and height as stored; for a TIFF, `image.size` is that of the upright image."""
    if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        return image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    return image.size


def _find_faults(image: PIL.Image.Image) -> list[str]:
    """Find parts that are not read, in a file that is open but not loaded."""
    faults = []
    if isinstance(image, PIL.TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        alphas = sum(kind in _ALPHA for kind in tags.get(_EXTRA, ()))
        if tags.get(_SAMPLES, 1) > _COLORS.get(tags.get(_PHOTOMETRIC, -1), 1) + alphas:
            faults.append(BANDS)
        if image.is_animated:
            faults.append(PAGES)
    if ";16" in raw_mode(image) and len(image.getbands()) > 1 and low_bytes_mode(image) is None:
        faults.append(UPPER_BITS)
    return faults


def _deep_values(path: Path, image: PIL.Image.Image, low_mode: str | None) -> np.ndarray | None:
    """Load an image. Returns its values, (H, W) or (H, W, 3), if they have more than 8 bits, else None."""
    image.load()
    if low_mode is None:
        return gray_values(image)
    with open_image(path) as low:
        set_raw_mode(low, low_mode)
        values = np.asarray(image)[..., :3].astype(np.uint16) << 8
        values |= np.asarray(low)[..., :3]
    return values


def _from_values(values: np.ndarray, bits: int | None) -> PIL.Image.Image:
    return PIL.Image.fromarray(to_bytes(values, bits or FULL_BITS)).convert("RGB")


def has_content(path: Path) -> bool:
    """Tell whether a file exists and is not empty; a power failure may leave an empty one."""
    try:
        return path.stat().st_size > 0
    except OSError:  # a name that is too long, for one
        return False
