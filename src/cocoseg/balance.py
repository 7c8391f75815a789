"""Class weights for the loss, from the pixel counts of the training masks."""

import math

import numpy as np


def class_weights(rule: str, counts: np.ndarray) -> list[float]:
    """Compute a weight for each class.

    Args:
        rule: `enet`: 1 / ln(1.02 + p) for a class with share p of all pixels, between 1.4 and 50 (Paszke et
            al. 2016, arXiv 1606.02147). `median`: median frequency / frequency of the class. The frequency
            is the class's share of the pixels of the images that show it (Eigen and Fergus 2015,
            arXiv 1411.4734).
        counts: pixels per image and class, (N, C).

    Returns:
        C weights; 1 for classes that don't occur.
    """
    pixels = counts.sum(0, dtype=np.int64)
    if rule == "enet":
        shares = pixels / max(1, pixels.sum())
        return [1 / math.log(1.02 + share) if share else 1.0 for share in shares.tolist()]
    per_image = counts.sum(1, dtype=np.int64)
    in_images = ((counts > 0) * per_image[:, None]).sum(0)  # pixels of the images that show a class
    occurs = pixels > 0
    frequency = np.divide(pixels, in_images, out=np.ones(len(pixels)), where=occurs)
    median = np.median(frequency[occurs]) if occurs.any() else 1.0
    return np.where(occurs, median / frequency, 1.0).tolist()
