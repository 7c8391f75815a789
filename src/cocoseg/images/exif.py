"""EXIF rotation: an image is read as stored or turned upright, and its annotations fit one of both readings.

Most annotation tools show images upright, and most programs read them as stored. An annotation file does not
say which its tool did. So evidence decides: the listed width and height of each image, and the agreement of
its outlines with the edges in it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final, Literal, NamedTuple

import numpy as np
import PIL.Image
from PIL.Image import Transpose

from cocoseg.config import AUTO

APPLY: Final = "apply"
IGNORE: Final = "ignore"
SetReading = Literal["apply", "ignore"]
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

MARGIN = 0.4  # least difference of the edge scores of one image; larger ones were right in 1,100 photographs

# Reasons for a reading where width and height in the annotation file do not prove it.
EDGES = "outlines match the edges in the images best this way"
STORED_SIZE = (
    "the annotation file gives width and height as stored, though some tools (Label Studio) do so for turned "
    "images, too"
)
OTHERS = "the other images of the file show it"
NOTHING = "no evidence was found, and most annotation tools turn images"


class Reading(Enum):
    """The reading of an image that its outlines fit; the value is the warning about it.

    `STRETCHED` is the upright image, with outlines that a tool scaled to the stored width and height.
    """

    STORED = "EXIF rotation not applied, because {}; data.exif=apply turns"
    UPRIGHT = "turned by EXIF rotation, because {}; data.exif=ignore does not turn"
    STRETCHED = (
        "turned by EXIF rotation, and outlines scaled from the stored width and height, because {}; "
        "data.exif=ignore leaves both as stored"
    )


class Rotation(NamedTuple):
    """Evidence on an image with an EXIF rotation.

    Attributes:
        by_size: True where the annotation file lists width and height of the upright image, False where it
            lists those of the stored one, None where both are the same.
        edges: `edge_score` in each reading, -inf in an impossible one; None where edges were not compared, or
            there is no outline.
    """

    by_size: bool | None
    edges: Mapping[Reading, float] | None = None


class Choice(NamedTuple):
    """A reading and the reason for it; None where the reading is certain or given by `data.exif`."""

    reading: Reading
    reason: str | None = None

    @property
    def warning(self) -> str | None:
        return self.reason and self.reading.value.format(self.reason)


def orientation_of(image: PIL.Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 where there is none or, as in viewers, where it is damaged."""
    with suppress(Exception):  # decoders raise about anything at damaged EXIF data
        orientation = image.getexif().get(ORIENTATION)
        return orientation if orientation in _TURNS else 1
    return 1


def turn(image: PIL.Image.Image, orientation: int, *, back: bool = False) -> PIL.Image.Image:
    """Turn stored pixels upright or, with `back`, upright pixels to the stored ones."""
    method = (_BACK if back else _TURNS).get(orientation)
    return image if method is None else image.transpose(method)


def turn_mask(mask: np.ndarray, orientation: int, *, back: bool = False) -> np.ndarray:
    """Turn a mask (H, W) uint8 as `turn` turns an image."""
    return np.asarray(turn(PIL.Image.fromarray(mask), orientation, back=back)) if orientation != 1 else mask


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of the upright image, given those of the stored one."""
    return size[::-1] if orientation in TRANSPOSED else size


def is_upright_size(listed: tuple[int, int], size: tuple[int, int], orientation: int) -> bool | None:
    """Return True if only the upright image has the listed size, False if only the stored one; else None."""
    upright = upright_size(size, orientation)
    return listed == upright if upright != size and listed in (size, upright) else None


def choose_readings(rotations: Sequence[Rotation], setting: str = AUTO) -> list[Choice]:
    """Choose a reading for each image with an EXIF rotation.

    Images with the same evidence are read alike, because one tool has made the file.

    Args:
        setting: `data.exif`, auto or apply.
    """
    stored_size = _choose_by_stored_size([r for r in rotations if r.by_size is False], setting)
    sized = [
        r.by_size or stored_size.reading is not Reading.STORED for r in rotations if r.by_size is not None
    ]
    either = _choose_by_others([r for r in rotations if r.by_size is None], sized, setting)
    choices = {True: Choice(Reading.UPRIGHT), False: stored_size, None: either}
    return [choices[rotation.by_size] for rotation in rotations]


def _choose_by_stored_size(rotations: Sequence[Rotation], setting: str) -> Choice:
    """Choose for images whose listed width and height are those of the stored image."""
    if setting == APPLY:
        return Choice(_best_by_edges(rotations, Reading.UPRIGHT, Reading.STRETCHED) or Reading.UPRIGHT)
    best = _best_by_edges(rotations, *Reading)
    return Choice(best, EDGES) if best else Choice(Reading.STORED, STORED_SIZE)


def _choose_by_others(rotations: Sequence[Rotation], sized: Sequence[bool], setting: str) -> Choice:
    """Choose for images that have the same width and height in both readings.

    Args:
        sized: for each image whose size proves its reading, True if it is read upright.
    """
    if setting == APPLY:
        return Choice(Reading.UPRIGHT)
    if best := _best_by_edges(rotations, Reading.UPRIGHT, Reading.STORED):
        return Choice(best, EDGES)
    if not sized:
        return Choice(Reading.UPRIGHT, NOTHING)
    return Choice(Reading.UPRIGHT if is_mostly(sized) else Reading.STORED, OTHERS)


def _best_by_edges(rotations: Sequence[Rotation], *readings: Reading) -> Reading | None:
    """Find the reading in which outlines fit edges best; None where the difference is too small."""
    scores = [[r.edges[one] for one in readings] for r in rotations if r.edges]
    if not scores:
        return None
    means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    second, best = sorted(means)[-2:]
    return readings[means.index(best)] if best - second > MARGIN / math.sqrt(len(scores)) else None


def upright_by(exif: str | None, by_size: bool | None = None) -> bool:
    """Tell whether to turn an image that has no outlines upright.

    Args:
        exif: apply or ignore, as the training images were read; None where they had no EXIF rotation.
        by_size: evidence from an annotation file, see `Rotation`.
    """
    if by_size is False:
        return exif == APPLY
    return bool(by_size) or exif != IGNORE


def reading_of_set(setting: Literal["auto"] | SetReading, uprights: Collection[bool]) -> SetReading | None:
    """The reading of most images with an EXIF rotation; None where a set has no such image.

    Args:
        setting: `data.exif`, which decides unless it is auto.
        uprights: for each such image, True if it is read upright.
    """
    if setting != AUTO:
        return setting
    if not uprights:
        return None
    return APPLY if is_mostly(uprights) else IGNORE


def is_mostly(upright: Collection[bool]) -> bool:
    """Tell whether at least half of the images are upright; True where there are none."""
    return 2 * sum(upright) >= len(upright)
