"""Scores of an input that is too large for the network: overlapping tiles, blended row by row."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

STEP = 32  # pixels: tiles start at multiples of it, so that pooling falls as it does in the whole image
ROWS = 32  # rows of scores that are yielded at a time
OVERLAP = 128  # pixels, and a quarter of the tile at most

# Where the size of tiles is chosen here:
LARGEST_INPUT = 2**20  # pixels that the network is given in one piece
TILE = 768  # pixels: side of a tile, where the number of classes leaves room for it
LEAST_TILE = 256  # pixels
BAND_BYTES = 2**29  # bytes of the scores of a row of tiles, 2 bytes each

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # top, bottom, left, right


def choose_tile(size: Size, image_size: Size, classes: int) -> Size | None:
    """Height and width of tiles for an input; None where it is small enough for one piece.

    Args:
        size: height and width of the input in pixels.
        image_size: height and width that the network was trained at: memory had room for it.
        classes: number of scores per pixel.
    """
    if math.prod(size) <= max(LARGEST_INPUT, math.prod(image_size)):
        return None
    room = BAND_BYTES // (2 * classes * size[1]) // STEP * STEP
    side = max(LEAST_TILE, min(TILE, room))
    return None if side >= max(size) else (side, side)


def blend_tiles(scores_of: Callable[[Box], Tensor], size: Size, tile: Size) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores of all tiles from top to bottom, some rows at a time.

    In the overlap of two tiles the weight moves from one to the other along a cosine. Weights add up to 1
    everywhere, at the image's border too.

    Args:
        scores_of: gives the scores (C, bottom - top, right - left) of a box.
        size: height and width of the whole input in pixels.
        tile: height and width of a tile in pixels; the last tiles may be up to STEP larger.

    Yields:
        the row after the last one so far, and scores (C, rows, W) float32.
    """
    down, right = (spans(length, side) for length, side in zip(size, tile, strict=True))
    ends = [start for start, _ in down[1:]] + [down[-1][1]]  # rows up to here need no tile below
    overlap: Tensor | None = None  # rows of the tiles above that the next row of tiles covers too
    for (top, bottom), end in zip(down, ends, strict=True):
        band = _row_of_tiles(scores_of, (top, bottom), right)
        if overlap is not None:
            shared = overlap.shape[1]
            band[:, :shared] = overlap.lerp(band[:, :shared], _ramp(shared, band)[:, None])
        overlap = band[:, end - top :].clone()
        for row in range(top, end, ROWS):
            stop = min(row + ROWS, end)
            yield stop, band[:, row - top : stop - top].float()
        del band  # large: freed before the next one is made


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Start and end of the tiles along one side, evenly spread."""
    most = (tile - min(OVERLAP, tile // 4)) // STEP  # steps from one start to the next
    last = (length - tile) // STEP
    if last <= 0:
        return [(0, length)]
    count = math.ceil(last / most)
    starts = [index * last // count * STEP for index in range(count + 1)]
    return [(start, start + tile) for start in starts[:-1]] + [(starts[-1], length)]


def _row_of_tiles(
    scores_of: Callable[[Box], Tensor], rows: tuple[int, int], columns: list[tuple[int, int]]
) -> Tensor:
    """Scores of tiles side by side, blended from left to right: (C, rows, W) float16."""
    band: Tensor | None = None
    reached = 0
    for left, right in columns:
        scores = scores_of((*rows, left, right))
        if band is None:
            band = scores.new_empty(*scores.shape[:2], columns[-1][1], dtype=torch.float16)
        shared = reached - left
        before = band[..., left:reached].float()
        band[..., left:reached] = before.lerp(scores[..., :shared], _ramp(shared, scores))
        band[..., reached:right] = scores[..., shared:]
        reached = right
    return band


def _ramp(length: int, like: Tensor) -> Tensor:
    """Weights that rise between 0 and 1 and reach neither: (length,), with dtype and device of `like`."""
    position = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / length
    return (0.5 - 0.5 * torch.cos(math.pi * position)).to(like.dtype)
