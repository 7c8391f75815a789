"""Inspection of pairs of image and mask image, and their conversion to masks of a prepared folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cocoseg.config import AUTO
from cocoseg.errors import CocosegError
from cocoseg.images.edges import edge_score
from cocoseg.images.exif import (
    IGNORE,
    Choice,
    Reading,
    Rotation,
    choose_readings,
    is_upright_size,
    turn,
    turn_mask,
)
from cocoseg.images.image_files import Inspection, check_image, read_image
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import LabelMap
from cocoseg.mask_images.pairs import MaskPair
from cocoseg.mask_images.values import count_values, look_up, read_values
from cocoseg.progress import run_tasks


class MaskItem(NamedTuple):
    """A pair of files, and the results of inspecting them.

    Attributes:
        found: the result for the image.
        values: value in the mask, see values.py -> number of pixels.
        rotation: evidence for a reading; None without an EXIF rotation, or with `data.exif=ignore`.
    """

    pair: MaskPair
    found: Inspection
    values: dict[int, int]
    rotation: Rotation | None


class MaskSet(NamedTuple):
    """A set of mask images that have been inspected.

    Attributes:
        items: the pairs to convert, in the order of the set.
        table: value -> class index, 255 for ignored values.
        expanded: see `read_values`.
        facts: lines for the report.
    """

    mask_dir: Path
    labels: LabelMap
    items: list[MaskItem]
    table: Mapping[int, int]
    expanded: bool
    facts: Sequence[str]

    def pixels(self, item: MaskItem) -> Counter[int]:
        """Count the pixels of a mask by class index, background (0) and ignored (255) included."""
        pixels: Counter[int] = Counter()
        for value, count in item.values.items():
            pixels[self.table[value]] += count
        return pixels


def inspect(
    pairs: Sequence[MaskPair], image_dir: Path, mask_dir: Path, expanded: bool, exif: str, workers: int | None
) -> list[MaskItem]:
    """Read images and masks to their last byte.

    Raises:
        CocosegError: some can't be read, or image and mask differ in size; the first ones are named.
    """
    inspector = partial(_inspect, image_dir, mask_dir, expanded, exif)
    return run_tasks(inspector, pairs, len(pairs), "images and masks", workers)


def convert(
    masks: MaskSet, output_dir: Path, encoding: MaskEncoding, exif: str = AUTO, workers: int | None = None
) -> list[MaskRecord]:
    """Write the masks of a prepared folder. Returns a record for each item, in their order.

    Raises:
        CocosegError: a file has changed since it was inspected.
    """
    rotations = [item.rotation for item in masks.items if item.rotation is not None]
    chosen = iter(choose_readings(rotations, exif))
    choices = [Choice(Reading.STORED) if item.rotation is None else next(chosen) for item in masks.items]
    tasks = zip(masks.items, choices, strict=True)
    converter = partial(_convert, masks._replace(items=[]), output_dir, encoding)
    return run_tasks(converter, tasks, len(choices), "masks", workers)


def _inspect(image_dir: Path, mask_dir: Path, expanded: bool, exif: str, pair: MaskPair) -> MaskItem | str:
    """Inspect a pair. A text that is returned is an error message."""
    path, mask_path = image_dir / pair.image, mask_dir / pair.mask
    try:
        values = read_values(mask_path, expanded=expanded)
        height, width = values.shape
        found = check_image(path, width, height, f"its mask {mask_path} is")
        rotation = None
        if found.orientation != 1 and exif != IGNORE:
            by_size = is_upright_size((width, height), found.size, found.orientation)
            rotation = Rotation(by_size, _compare_edges(path, found, values) if by_size is None else None)
        if (width, height) != found.size and rotation is None:
            return f"{path}: its mask has the size of the image turned by EXIF rotation; set data.exif=auto"
        return MaskItem(pair, found, count_values(mask_path, values), rotation)
    except CocosegError as error:
        return str(error)


def _compare_edges(path: Path, found: Inspection, values: np.ndarray) -> dict[Reading, float] | None:
    """Compare the edges in an image with the borders in its mask, see `Rotation.edges`."""
    upright = read_image(path, upright=True, bits=found.bits).convert("L")
    images = {Reading.UPRIGHT: upright, Reading.STORED: turn(upright, found.orientation, back=True)}
    mask = (values % 251).astype(np.uint8)  # two values of a mask hardly ever become the same
    scores = {reading: edge_score(image, mask) for reading, image in images.items()}
    known = {reading: score for reading, score in scores.items() if score is not None}
    return known if len(known) == len(scores) else None


def _convert(
    masks: MaskSet, output_dir: Path, encoding: MaskEncoding, task: tuple[MaskItem, Choice]
) -> MaskRecord | str:
    """Convert a mask. A text that is returned is an error message."""
    item, choice = task
    path, found, pixels = masks.mask_dir / item.pair.mask, item.found, dict(masks.pixels(item))
    try:
        mask = look_up(read_values(path, expanded=masks.expanded), masks.table)
    except CocosegError as error:
        return str(error)
    except KeyError:
        return f"{path}: it has changed while it was read"
    # A size that only the stored image has is a proof: unlike outlines, masks are not stretched.
    is_stored = item.rotation is None or item.rotation.by_size is False
    upright = not is_stored and choice.reading is not Reading.STORED
    name = encoding.file_name(item.pair.image, pixels)
    encoding.write(turn_mask(mask, found.orientation, back=True) if upright else mask, output_dir / name)
    return MaskRecord(
        image=item.pair.image,
        mask=name,
        pixels=pixels,
        warnings={},
        orientation=found.orientation,
        upright=upright,
        doubt=None if is_stored else choice.warning,
        bits=found.bits,
        faults=found.faults,
    )
