"""Confidence intervals of scores, for their variation with the choice of the images.

The percentile bootstrap over images (Efron 1979): many sets of the same size are drawn from the images, with
replacement, and scored. The interval holds the middle 95 % of their scores. Images are drawn rather than
pixels, because the pixels of one image depend on each other.
"""

import warnings

import numpy as np

from cocoseg.scores import Counts

RESAMPLES = 1000
TAILS = (0.025, 0.975)
AT_ONCE = 50  # sets that are drawn at a time; it bounds the memory


def intervals(images: Counts, *, seed: int, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Intervals of `Counts.summary`, and of the IoU of each class.

    Args:
        images: counts of each image, (N, C).
        resamples: sets to draw, a multiple of AT_ONCE.

    Returns:
        Low and high end by name: (2,) each, and `iou` (2, C). Sets without a class don't count for the
        interval of the class. NaN where no set has a score.
    """
    count = len(images.target)
    generator = np.random.default_rng(seed)
    counts = np.concatenate(images, axis=1).astype(np.float64)  # sums are exact: far below 2^53
    shares = np.full(count, 1 / count)
    draws = (generator.multinomial(count, shares, AT_ONCE) for _ in range(resamples // AT_ONCE))
    sums = np.concatenate([drawn.astype(np.float64) @ counts for drawn in draws])
    sets = Counts(*np.split(sums, 3, axis=1))
    scores = {**sets.summary(), "iou": sets.iou()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns that are all NaN stay NaN
        return {name: np.nanquantile(values, TAILS, axis=0) for name, values in scores.items()}
