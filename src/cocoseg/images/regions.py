"""Connected regions of a label mask: their runs, as in COCO's RLE, and their outlines. No torch.

Memory and time grow with the number of runs, not with regions times pixels.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

INSET = 0.01  # pixels by which an outline lies inside the border of its pixels, see `outline`
# Outline of a region that is only the upper left pixel of an image. Its coordinates, all below 1, are in
# pixels, not shares of the width and height.
CORNER = [INSET, INSET, 1 - INSET, INSET, 1 - INSET, 1 - INSET, INSET, 1 - INSET]


class Region(NamedTuple):
    """Pixels of one value that are connected along their sides.

    Attributes:
        value: value in the mask.
        area: number of pixels.
        mean: mean weight of the pixels.
        starts, lengths: (n,) int64, runs of pixels, each within a column; pixels are numbered by columns.
    """

    value: int
    area: int
    mean: float
    starts: np.ndarray
    lengths: np.ndarray


def find_regions(mask: np.ndarray, weights: np.ndarray) -> Iterator[Region]:
    """Find the regions of a mask (H, W) uint8, in the order of their first pixels, column by column.

    Pixels that touch at corners only are not connected, so that a region has one outer border.

    Args:
        weights: (H, W) uint8.
    """
    height = len(mask)
    flat = mask.ravel(order="F")
    is_start = np.append(True, flat[1:] != flat[:-1])
    is_start[::height] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=flat.size)
    values = flat[starts]
    # 32 bits suffice, as a run lies within a column. NumPy copies all pixels to the type of the sums.
    sums = np.add.reduceat(weights.ravel(order="F"), starts, dtype=np.uint32).astype(np.int64)
    # In the first row where two runs lie side by side, one of them begins. So a look to the left and to the
    # right of each start finds all such pairs.
    has_left, has_right = np.flatnonzero(starts >= height), np.flatnonzero(starts < flat.size - height)
    beside = np.concatenate((starts[has_left] - height, starts[has_right] + height))
    first, second = np.concatenate((has_left, has_right)), np.searchsorted(starts, beside, side="right") - 1
    joined = values[first] == values[second]
    roots = _components(len(starts), first[joined], second[joined])
    order = np.argsort(roots, kind="stable")
    begins = np.flatnonzero(np.diff(roots[order], prepend=-1))
    areas, totals = (np.add.reduceat(numbers[order], begins) for numbers in (lengths, sums))
    for runs, area, total in zip(np.split(order, begins[1:]), areas.tolist(), totals.tolist(), strict=True):
        yield Region(int(values[runs[0]]), area, total / area, starts[runs], lengths[runs])


def _components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Find the lowest node of the connected component of each node: (count,) int64.

    Args:
        first, second: (n,) int64, the nodes that each of n edges connects.
    """
    roots = np.arange(count)
    while True:
        ends = np.sort((roots[first], roots[second]), axis=0)
        low, high = ends[:, ends[0] != ends[1]]
        if not low.size:
            return roots
        np.minimum.at(roots, high, low)
        while not np.array_equal(further := roots[roots], roots):
            roots = further


def outline(region: Region, height: int) -> list[float]:
    """Trace the border of a region as one polygon [x0, y0, x1, y1, …], in pixels.

    A slit, which the polygon passes twice, joins each hole to the border above it. The polygon lies INSET
    inside the border. Pillow cuts the coordinates to integers, which are the outermost pixels, and fills
    these, too. pycocotools rounds the coordinates to the border and fills up to it.

    Args:
        height: height of the mask, in pixels.
    """
    edges, is_upper, above, following, x = _edges(region, height)
    tails, heads = x.tolist()
    y = (edges[:, 2] + np.where(is_upper, INSET, -INSET)).tolist()
    roots = _components(len(edges), np.arange(len(edges)), following)
    # The first edge of a loop is its uppermost, and the first loop is the outer border. The pixel to the
    # upper right of a hole's first edge belongs to the region, and the slit begins at the top of its run.
    holes = np.flatnonzero(roots == np.arange(len(edges)))[1:]
    pixels = edges[holes, 1] * height + edges[holes, 2] - 1
    runs = np.searchsorted(region.starts, pixels, side="right") - 1
    slits: dict[int, list[int]] = defaultdict(list)  # edge -> holes below it
    for edge, hole in zip(above[runs].tolist(), holes.tolist(), strict=True):
        slits[edge].append(hole)
    successors = following.tolist()

    def walk(first: int) -> Iterator[tuple[float, float] | Iterator]:
        """Yield the points of a loop, and for each hole joined to it a walk around the hole."""
        edge = first
        while True:
            yield tails[edge], y[edge]
            for hole in sorted(slits[edge], key=tails.__getitem__):
                place = tails[hole]
                yield from ((place, y[edge]), walk(hole), (place, y[hole]), (place, y[edge]))
            yield heads[edge], y[edge]
            if (edge := successors[edge]) == first:
                return

    points, walks = [], [walk(0)]
    while walks:  # no recursion, as thousands of holes may be joined one below the other
        point = next(walks[-1], None)
        if point is None:
            walks.pop()
        elif isinstance(point, tuple):
            points.append(point)
        else:
            walks.append(point)
    return np.round(points, 2).ravel().tolist()


def _edges(region: Region, height: int) -> tuple[np.ndarray, ...]:
    """Find the horizontal edges of the border of a region, and their order clockwise around it.

    Returns:
        edges: (n, 3) int64, left, right and y of each edge, from top to bottom.
        is_upper: (n,) bool, True where the region lies below the edge, which then leads to the right.
        above: int64, index of the edge at the top of each run.
        following: (n,) int64, index of the next edge, which a vertical edge leads to.
        x: (2, n) float64, begin and end of each edge, INSET inside the region.
    """
    columns, tops = np.divmod(region.starts, height)
    (upper, above), (lower, _) = (_merge(columns, rows) for rows in (tops, tops + region.lengths))
    edges, count = np.concatenate((upper, lower)), len(upper) + len(lower)
    order = np.lexsort((edges[:, 0], edges[:, 2]))
    edges, is_upper, above = edges[order], order < len(upper), np.argsort(order)[above]
    ends = np.where(is_upper, edges[:, :2].T, edges[:, 1::-1].T).ravel()
    # Edge i begins at corner i and ends at corner n + i. Down a column of corners, vertical edges join the
    # first with the second, and so on. Where two pixels touch at a corner only, the upper one is first.
    pairs = np.lexsort((np.tile(is_upper, 2), np.tile(edges[:, 2], 2), ends)).reshape(-1, 2)
    leads_down = pairs[:, 0] >= count
    sources, targets = np.where(leads_down, pairs.T, pairs.T[::-1])
    following = np.empty(count, np.int64)
    following[sources - count] = targets
    x = ends.astype(np.float64)
    x[pairs] += np.where(leads_down, -INSET, INSET)[:, None]
    return edges, is_upper, above, following, x.reshape(2, count)


def _merge(columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join sides of pixels at these columns and rows to edges (n, 3). Returns also the edge of each side."""
    order = np.lexsort((columns, rows))
    left, y = columns[order], rows[order]
    is_first = np.append(True, (np.diff(y) != 0) | (np.diff(left) != 1))
    numbers = np.empty_like(order)
    numbers[order] = np.cumsum(is_first) - 1
    return np.column_stack((left[is_first], left[np.roll(is_first, -1)] + 1, y[is_first])), numbers
