"""Polygons filled as pycocotools fills them, in time and memory that don't grow with the image.

pycocotools walks along the whole outline, in steps of a fifth of a pixel, and decodes to a canvas of the
image's size: an object costs as much as the image is large, and a few far points take gigabytes. Here only
those steps are computed that cross the middle of a column of the image.
Source: `rleFrPoly` in pycocotools' maskApi.c.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_SCALE = 5  # steps per pixel
_MIDDLE = 2  # a pixel's middle lies between its steps 2 and 3
_BELOW = _SCALE - 1 - _MIDDLE  # (step + _BELOW) // _SCALE is the first row whose middle is not above a step
_CHUNK = 2**18  # crossings in memory at a time


class _Edges(NamedTuple):
    """Edges of a polygon, each attribute (N,) int64 in steps; along the longer side they go upward.

    Attributes:
        x, y: where an edge begins.
        width, height: signed, of the way to its end.
    """

    x: np.ndarray
    y: np.ndarray
    width: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, polygon: Sequence[float]) -> "_Edges":
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        begin = (_SCALE * points + 0.5).astype(np.int64)  # toward zero, as C does
        end = np.concatenate((begin[:, 1:], begin[:, :1]), axis=1)
        way = end - begin
        flip = np.where(abs(way[0]) >= abs(way[1]), way[0], way[1]) < 0
        return cls(*np.where(flip, end, begin), *np.where(flip, -way, way))

    def columns(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """First column of an image whose middle each edge crosses, and the number of such columns."""
        low, high = np.minimum(self.x, self.x + self.width), np.maximum(self.x, self.x + self.width)
        first = np.maximum(-((_MIDDLE - low) // _SCALE), 0)
        last = np.minimum((high - _MIDDLE - 1) // _SCALE, width - 1)
        return first, np.maximum(last - first + 1, 0)

    def rows(self, height: int) -> tuple[int, int]:
        """First row of an image that the edges reach, and the row after the last."""
        steps = np.concatenate((self.y, self.y + self.height))
        top, bottom = ((int(step) + _BELOW) // _SCALE for step in (steps.min(), steps.max()))
        return min(max(top, 0), height), min(max(bottom, 0), height)

    def rows_at(self, edge: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The first row below an edge, in a column whose middle it crosses.

        The roundings are those of the C code, so that every border is, too.
        """
        x, y, width, height = (values[edge] for values in self)
        before = _SCALE * column + _MIDDLE  # the step to the left of the middle
        wide = width >= abs(height)
        slope = np.where(wide, height, width) / np.where(wide, width, height)
        # A wide edge has one step on each side of the middle.
        along = before - x
        beside = np.minimum(_toward_zero(y, slope, along), _toward_zero(y, slope, along + 1))
        # A high edge has many: `guess` is the first one beyond the middle, or rounding makes it a neighbor.
        slope[wide] = 1
        guess = np.ceil((along + 0.5) / slope).astype(np.int64)
        beyond = [(_toward_zero(x, slope, guess - i) > before) == (slope > 0) for i in (0, 1)]
        step = np.where(wide, beside, y + guess - beyond[0] - beyond[1])
        return (step + _BELOW) // _SCALE


def _toward_zero(begin: np.ndarray, slope: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return (begin + slope * steps + 0.5).astype(np.int64)


def fill_polygon(mask: np.ndarray, polygon: Sequence[float], value: int) -> None:
    """Fill a polygon, [x0, y0, x1, y1, ...] in pixels, in a mask (H, W) uint8."""
    height, width = mask.shape
    edges = _Edges.of(polygon)
    first, counts = edges.columns(width)
    crossed = counts > 0
    if not crossed.any():
        return
    left, right = int(first[crossed].min()), int((first + counts)[crossed].max())
    top, bottom = edges.rows(height)
    # A pixel is inside where an odd number of edges lies above it. A sum of 8 bits keeps what is odd.
    above = np.zeros((right - left, bottom - top + 1), dtype=np.uint8)
    for edge, column in _crossings(first, counts):
        row = np.minimum(np.maximum(edges.rows_at(edge, column), top), bottom)
        np.add.at(above, (column - left, row - top), 1)
    inside = np.cumsum(above[:, :-1], axis=1, dtype=np.uint8) & 1
    np.copyto(mask[top:bottom, left:right], value, where=inside.view(bool).T)


def _crossings(first: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield number of edge and column of all crossings, some at a time."""
    ends = np.cumsum(counts)
    for begin in range(0, int(ends[-1]), _CHUNK):
        number = np.arange(begin, min(begin + _CHUNK, int(ends[-1])))
        edge = np.searchsorted(ends, number, side="right")
        yield edge, first[edge] + number - (ends - counts)[edge]
