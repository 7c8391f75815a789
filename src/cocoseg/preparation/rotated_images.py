"""Images with an EXIF rotation: the evidence for a reading, see exif.py, and their annotations in it."""

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cocoseg.config import MasksConfig
from cocoseg.figures.comparison import spread
from cocoseg.images.edges import edge_score
from cocoseg.images.exif import (
    Choice,
    Reading,
    Rotation,
    choose_readings,
    is_upright_size,
    turn,
    upright_size,
)
from cocoseg.images.image_files import Inspection, read_image
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, Layers, SegmentationError, parse_layers
from cocoseg.workers import parallel_map

SAMPLE = 200  # images of a kind whose edges are compared; decoding a photograph takes a quarter of a second


class Rotated(NamedTuple):
    """An image with an EXIF rotation; `listed` are width and height in the annotation file."""

    path: Path
    listed: tuple[int, int]
    found: Inspection
    instances: Iterable[Instance]


def find_readings(
    images: Sequence[Rotated], rules: MasksConfig, setting: str, workers: int | None
) -> list[Choice]:
    """Find the reading of each image, by its size in the annotation file and by the edges of a sample.

    Args:
        setting: `data.exif`, auto or apply.

    Raises:
        CocosegError: an image can't be read.
    """
    rotations = [Rotation(is_upright_size(i.listed, i.found.size, i.found.orientation)) for i in images]
    sample: list[int] = []
    for by_size in (False, None):  # True leaves no doubt
        alike = [index for index, rotation in enumerate(rotations) if rotation.by_size is by_size]
        sample += [alike[place] for place in spread(len(alike), SAMPLE)]
    compare, chosen = partial(_compare_edges, rules), (images[index] for index in sample)
    with closing(parallel_map(compare, chosen, len(sample), workers)) as edges:
        for index, scores in zip(sample, edges, strict=True):
            rotations[index] = rotations[index]._replace(edges=scores)
    return choose_readings(rotations, setting)


def _compare_edges(rules: MasksConfig, image: Rotated) -> dict[Reading, float] | None:
    """Compare the edges in an image with its outlines in each reading, see `Rotation.edges`."""
    upright = read_image(image.path, upright=True, bits=image.found.bits).convert("L")
    stored = turn(upright, image.found.orientation, back=True)
    scores: dict[Reading, float | None] = {}
    for reading in Reading:
        try:
            mask = paint(layers_as_read(image.instances, image.found, reading, rules), rules)
            scores[reading] = edge_score(stored if reading is Reading.STORED else upright, mask)
        except SegmentationError:  # an RLE of the other size
            scores[reading] = -math.inf
    known = {reading: score for reading, score in scores.items() if score is not None}
    return known if len(known) == len(scores) else None


def layers_as_read(
    instances: Iterable[Instance], found: Inspection, reading: Reading, rules: MasksConfig
) -> Layers:
    """Parse the annotations of an image, in pixels of this reading of it.

    Raises:
        SegmentationError: a segmentation is malformed, or an RLE has another size.
    """
    upright = upright_size(found.size, found.orientation)
    width, height = upright if reading is Reading.UPRIGHT else found.size
    layers = parse_layers(instances, height, width, rules.crowd)
    return layers.scale_to(*upright) if reading is Reading.STRETCHED else layers
