"""Overlapping tiles of an input that is too large for one pass. Each tile decides its middle."""

import math
from typing import NamedTuple

STEP = 32  # pixels; tiles start at multiples of it, so that pooling windows are those of the whole image
OVERLAP = 128  # pixels; at most a quarter of the tile
LARGEST_INPUT = 2**20  # pixels of the largest input that tile=auto leaves in one piece
TILE = 768  # pixels; side of the tiles of tile=auto

Size = tuple[int, int]  # height, width


class Span(NamedTuple):
    """A tile along one side, in pixels of the input; ends are not included.

    Attributes:
        start, stop: the pixels that the network sees.
        first, last: the pixels that the tile decides.
    """

    start: int
    stop: int
    first: int
    last: int


def choose_tile(size: Size, image_size: Size) -> Size | None:
    """Choose height and width of tiles for an input of this size; None leaves it in one piece.

    An input of `image_size`, at which the network was trained, is known to fit into memory.
    """
    return (TILE, TILE) if math.prod(size) > max(LARGEST_INPUT, math.prod(image_size)) else None


def spans(length: int, tile: int) -> list[Span]:
    """Spread tiles evenly along one side. The last one may be larger, by less than STEP."""
    most = (tile - min(OVERLAP, tile // 4)) // STEP  # steps from one start to the next
    last = max(0, (length - tile) // STEP)
    count = math.ceil(last / most)
    starts = [index * last // max(1, count) * STEP for index in range(count + 1)]
    stops = [start + tile for start in starts[:-1]] + [length]
    cuts = [0] + [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)] + [length]
    return [Span(*ends) for ends in zip(starts, stops, cuts[:-1], cuts[1:], strict=True)]
