"""Scores of what is too large for the network: of overlapping tiles, blended, a band of tiles at a time."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

STEP = 32  # pixels: tiles begin at multiples of it, so that pooling falls as it does in the whole image
ROWS = 32  # that are handed out at a time
OVERLAP = 128  # pixels, and a quarter of the tile at most

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # top, bottom, left, right


def blended(
    scores_of: Callable[[Box], Tensor], size: Size, tile: Size, *, across: bool = False
) -> Iterator[tuple[int, Tensor]]:
    """Scores from top to bottom, as bands below each other: where one ends, and the band.

    In the overlap of two tiles the weight goes over from one to the other along a cosine; weights add up to 1
    everywhere, at the image's border too.

    Args:
        scores_of: (C, bottom - top, right - left) of a box.
        size: of the whole, in pixels.
        tile: of a tile; the last ones may be up to STEP larger.
        across: from left to right instead, transposed, so that bands are as short as can be in a wide image.

    Yields:
        (C, rows, W) float32 of some rows at a time, or (C, columns, H) where `across`.
    """
    down, right = (spans(length, side) for length, side in zip(size, tile, strict=True))
    outer, inner = (right, down) if across else (down, right)
    ends = [begin for begin, _ in outer[1:]] + [outer[-1][1]]
    over: Tensor | None = None  # what of the band before reaches into this one
    for outer_span, end in zip(outer, ends, strict=True):
        band = _band(scores_of, outer_span, inner, across)
        if over is not None:
            shared = over.shape[1]
            band[:, :shared] = over.lerp(band[:, :shared], _ramp(shared, band)[:, None])
        begin = outer_span[0]
        over = band[:, end - begin :].clone()
        for row in range(begin, end, ROWS):
            stop = min(row + ROWS, end)
            yield stop, band[:, row - begin : stop - begin].float()
        del band  # before the next one is made: it is large


def spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Begin and end of the tiles along one side, evenly spread."""
    most = (tile - min(OVERLAP, tile // 4)) // STEP  # from one begin to the next; here all is in steps
    last = (length - tile) // STEP
    if last <= 0:
        return [(0, length)]
    count = math.ceil(last / most)
    begins = [number * last // count * STEP for number in range(count + 1)]
    return [(begin, begin + tile) for begin in begins[:-1]] + [(begins[-1], length)]


def _band(
    scores_of: Callable[[Box], Tensor], outer: tuple[int, int], inner: list[tuple[int, int]], across: bool
) -> Tensor:
    """A row of tiles, blended from left to right: (C, rows, W) float16; or a column of them, transposed."""
    band: Tensor | None = None
    reached = 0
    for begin, end in inner:
        scores = scores_of((begin, end, *outer)).mT if across else scores_of((*outer, begin, end))
        if band is None:
            band = scores.new_empty(*scores.shape[:2], inner[-1][1], dtype=torch.float16)
        shared = reached - begin
        before = band[..., begin:reached].float()
        band[..., begin:reached] = before.lerp(scores[..., :shared], _ramp(shared, scores))
        band[..., reached:end] = scores[..., shared:]
        reached = end
    return band


def _ramp(length: int, like: Tensor) -> Tensor:
    """Weights that rise between 0 and 1, neither of them reached: (length,) in the dtype of `like`."""
    place = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / length
    return (0.5 - 0.5 * torch.cos(math.pi * place)).to(like.dtype)
