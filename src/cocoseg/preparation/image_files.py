"""Image files: formats that are accepted, checks, reading as RGB."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps

from cocoseg.errors import CocosegError
from cocoseg.preparation.coco_file import Image

# No other format is opened: Pillow would hand some, EPS for one, to an interpreter.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")


def check_image(path: Path, width: int, height: int) -> None:
    """Check that an image can be read to its last byte and has this size, as stored (EXIF is not applied).

    Raises:
        CocosegError: names the file.
    """
    with _open_image(path) as image:
        size = image.size  # read from the header, so a huge image of another size is never decoded
        if size != (width, height):
            turned = "; it was annotated turned by its EXIF rotation, which is not applied: save it turned"
            raise CocosegError(
                f"{path}: the image is {size[0]}x{size[1]} (width x height), "
                f"the annotation file says {width}x{height}{turned if size == (height, width) else ''}"
            )
        if image.mode == "F":
            raise ValueError("floating-point pixels have no known range")
        image.draft("L", (1, 1))  # JPEG: an eighth of the size, which still reads the whole file
        image.load()


def read_image(path: Path) -> PIL.Image.Image:
    """Read an image as RGB, 8 bits a channel, its pixels as stored (no EXIF rotation: annotations belong
    to the stored pixels).

    Raises:
        CocosegError: it can't be read.
    """
    with _open_image(path) as image:
        return to_rgb(image)


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height as stored, from the file's header alone; None where it can't be read."""
    try:
        with _open_image(path) as image:
            return image.size
    except CocosegError:
        return None


def read_upright(path: Path) -> PIL.Image.Image:
    """Read an image as RGB, 8 bits a channel, turned by its EXIF orientation as viewers show it.

    Raises:
        CocosegError: it can't be read.
    """
    with _open_image(path) as image:
        image.load()
        with suppress(Exception):  # decoders raise about anything at damaged EXIF data, which viewers ignore
            PIL.ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


@contextmanager
def _open_image(path: Path) -> Iterator[PIL.Image.Image]:
    """An image of one of FORMATS; what goes wrong in the block too is a CocosegError that names the file."""
    try:
        with PIL.Image.open(path, formats=FORMATS) as image:
            yield image
    except (CocosegError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise CocosegError(f"{path}: the image is missing") from error
    except PIL.UnidentifiedImageError as error:
        raise CocosegError(f"{path}: not a readable image (none of {', '.join(FORMATS)})") from error
    except Exception as error:  # damaged bytes make decoders raise about anything
        raise CocosegError(f"{path}: not a readable image ({error})".replace("\n", " ")) from error


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert any mode to RGB; 16-bit grayscale is scaled, which Pillow's own conversion would clip."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        deep = np.asarray(image).clip(0, 65535)
        image = PIL.Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    return image.convert("RGB")


def missing_images(images: Sequence[Image], image_dir: Path) -> list[Image]:
    """Images without a file; an empty file, as a power failure leaves it, counts as none."""

    def is_there(path: Path) -> bool:
        try:
            return path.stat().st_size > 0
        except OSError:  # a name that is too long, for one
            return False

    return [image for image in images if not is_there(image_dir / image.file_name)]
