"""EXIF rotation: an image can be read as stored or turned upright, and its annotations belong to one of them.

Most annotation tools show images upright, and most programs read them as stored. An annotation file does not
say which, so that evidence decides: width and height of each image, and the outlines drawn on it.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import PIL.Image
from PIL.Image import Transpose

from cocoseg.config import AUTO

APPLY, IGNORE = "apply", "ignore"
ORIENTATION = 0x0112  # tag of EXIF and TIFF; 1: stored upright
TRANSPOSED = (5, 6, 7, 8)  # orientations that swap width and height

_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_BACK = _TURNS | {6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}

# Warnings on images whose reading is not certain.
_STORED = (
    "EXIF rotation not applied, because the annotation file gives width and height as stored; if the "
    "outlines were drawn on the turned image (Label Studio gives this size, too), set data.exif=apply"
)
_OUTLINES = (
    "turned by EXIF rotation, because outlines fit the turned images alone, though the annotation file gives "
    "width and height as stored; data.exif=ignore does not turn"
)
_EITHER = "width and height don't tell whether the annotations were drawn on the turned image"
_EITHER_TURNED = f"turned by EXIF rotation, but {_EITHER}; data.exif=ignore does not turn"
_EITHER_STORED = f"EXIF rotation not applied, but {_EITHER}; data.exif=apply turns"


class Rotation(NamedTuple):
    """Evidence on an image with an EXIF rotation: True is for upright, False for stored, None for neither.

    Attributes:
        by_size: width and height in the annotation file.
        by_outlines: outlines that lie within one of the readings only.
    """

    by_size: bool | None
    by_outlines: bool | None

    def warning(self, *, upright: bool) -> str | None:
        """The sentence on a reading that is not certain."""
        if self.by_size is None:
            return _EITHER_TURNED if upright else _EITHER_STORED
        if self.by_size:
            return None
        return _OUTLINES if upright else _STORED


def orientation_of(image: PIL.Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or where it is damaged, as viewers take it."""
    with suppress(Exception):  # decoders raise about anything at damaged EXIF data
        orientation = image.getexif().get(ORIENTATION)
        return orientation if orientation in _TURNS else 1
    return 1


def turn(image: PIL.Image.Image, orientation: int, *, back: bool = False) -> PIL.Image.Image:
    """Turn stored pixels upright, or upright pixels `back` to how they are stored."""
    method = (_BACK if back else _TURNS).get(orientation)
    return image if method is None else image.transpose(method)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of the upright image, by those of the stored one."""
    return size[::-1] if orientation in TRANSPOSED else size


def find_rotation(
    size: tuple[int, int], orientation: int, listed: tuple[int, int], extent: tuple[float, float]
) -> Rotation:
    """Find the evidence on an image with an EXIF rotation.

    Args:
        size: width and height as stored.
        listed: width and height in the annotation file, those of one of the readings.
        extent: largest x and y of its outlines.
    """
    upright = upright_size(size, orientation)
    if upright == size:
        return Rotation(None, None)
    in_upright, in_stored = (
        all(most <= side + 1 for most, side in zip(extent, frame, strict=True)) for frame in (upright, size)
    )
    return Rotation(listed == upright, in_upright if in_upright != in_stored else None)


def choose_readings(rotations: Sequence[Rotation]) -> list[bool]:
    """Decide for each image with an EXIF rotation whether it is read upright.

    One tool made the file, so that what is certain of some images holds for those that tell nothing. Where
    none tells anything, they are upright, as annotation tools show them.
    """
    outlines = {rotation.by_outlines for rotation in rotations if not rotation.by_size} - {None}
    as_stored = outlines == {True}  # the reading of images whose listed size is the stored one
    sized = [rotation.by_size or as_stored for rotation in rotations if rotation.by_size is not None]
    either = is_mostly(sized)
    return [either if r.by_size is None else r.by_size or as_stored for r in rotations]


def upright_by(exif: str | None, by_size: bool | None = None) -> bool:
    """Decide the reading of an image that has no outlines.

    Args:
        exif: apply or ignore, as the training images were read; None where they had no EXIF rotation.
        by_size: evidence of an annotation file, see `Rotation`.
    """
    if by_size is False:
        return exif == APPLY
    return bool(by_size) or exif != IGNORE


def reading_of_set(setting: str, uprights: Collection[bool]) -> str | None:
    """The reading of most images with an EXIF rotation; None where a set has none and none is set.

    Args:
        setting: `data.exif`.
        uprights: for each such image, whether it is read upright.
    """
    if setting != AUTO:
        return setting
    if not uprights:
        return None
    return APPLY if is_mostly(uprights) else IGNORE


def is_mostly(upright: Collection[bool]) -> bool:
    """Whether at least half of the images are upright; True where there are none."""
    return 2 * sum(upright) >= len(upright)
