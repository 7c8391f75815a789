"""Confidence intervals of scores: how far they vary with the images that the set happens to hold.

The percentile bootstrap over images (Efron 1979): sets of as many images are drawn from the set, with
replacement, and scored. The interval holds the middle 95 % of their scores. Images are drawn and not pixels,
because the pixels of one image depend on each other.
"""

import numpy as np

from cocoseg.scores import Counts

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 2**24  # counts of drawn images that are held at a time


def intervals(images: Counts, *, seed: int, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Intervals of `Counts.summary`, and of the IoU of each class.

    Args:
        images: counts of each image, (N, C).
        resamples: sets to draw.

    Returns:
        low and high end by name: (2,) each, and `iou` (2, C). NaN where no drawn set has a score; sets
        without a class don't count for its interval.
    """
    count = len(images.target)
    generator = np.random.default_rng(seed)
    counts = np.concatenate(images, axis=1).astype(np.float64)
    sums = []
    at_once = max(1, BLOCK // count)
    for begin in range(0, resamples, at_once):
        drawn = generator.multinomial(count, np.full(count, 1 / count), min(at_once, resamples - begin))
        sums.append(drawn.astype(np.float64) @ counts)  # exact: far below 2^53
    sets = Counts(*np.split(np.concatenate(sums), 3, axis=1))
    scores = {**sets.summary(), "iou": sets.iou()}
    return {name: _middle(values) for name, values in scores.items()}


def _middle(values: np.ndarray) -> np.ndarray:
    """Low and high end of the middle LEVEL of each column of (R, …), without NaN: (2, …)."""
    columns = values.reshape(len(values), -1)
    known = ~np.isnan(columns).all(0)
    ends = np.full((2, columns.shape[1]), np.nan)
    tail = (1 - LEVEL) / 2
    ends[:, known] = np.nanquantile(columns[:, known], [tail, 1 - tail], axis=0)
    return ends.reshape(2, *values.shape[1:])
