"""Tiles of an input that is too large for the network: they overlap, and each decides its middle."""

import math
from typing import NamedTuple

STEP = 32  # pixels: tiles start at multiples of it, so that pooling falls as it does in the whole image
OVERLAP = 128  # pixels, and a quarter of the tile at most
LARGEST_INPUT = 2**20  # pixels that the network is given in one piece by tile=auto
TILE = 768  # pixels: side of the tiles of tile=auto

Size = tuple[int, int]  # height, width


class Span(NamedTuple):
    """A tile along one side, in pixels of the input.

    Attributes:
        start, stop: what the network sees.
        first, last: what the tile decides: from `first` up to, not including, `last`.
    """

    start: int
    stop: int
    first: int
    last: int


def choose_tile(size: Size, image_size: Size) -> Size | None:
    """Height and width of tiles for an input of this size; None where one piece is not too large.

    Memory had room for an input of `image_size`, at which the network was trained.
    """
    return (TILE, TILE) if math.prod(size) > max(LARGEST_INPUT, math.prod(image_size)) else None


def spans(length: int, tile: int) -> list[Span]:
    """Tiles along one side, evenly spread; the last one may be up to STEP larger."""
    most = (tile - min(OVERLAP, tile // 4)) // STEP  # steps from one start to the next
    last = max(0, (length - tile) // STEP)
    count = math.ceil(last / most)
    starts = [index * last // max(1, count) * STEP for index in range(count + 1)]
    stops = [start + tile for start in starts[:-1]] + [length]
    cuts = [0] + [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)] + [length]
    return [Span(*ends) for ends in zip(starts, stops, cuts[:-1], cuts[1:], strict=True)]
