"""Classes of unequal share: weights for the loss and for crops, from the pixels of the training masks."""

import math

import numpy as np


def class_weights(rule: str, counts: np.ndarray) -> list[float]:
    """A weight for each class.

    Args:
        rule: `enet`: 1 / ln(1.02 + p), where p is the class's share of all pixels (Paszke et al. 2016,
            arXiv 1606.02147), which lies between 1.4 and 50; `median`: the median of the frequencies of all
            classes over that of the class, where only images that show a class count for its frequency (Eigen
            and Fergus 2015, arXiv 1411.4734).
        counts: pixels per image and class, (N, C).

    Returns:
        C weights, 1 for classes that don't occur.
    """
    pixels = counts.sum(0, dtype=np.int64)
    if rule == "enet":
        shares = pixels / max(1, pixels.sum())
        return [1 / math.log(1.02 + share) if share else 1.0 for share in shares.tolist()]
    per_image = counts.sum(1, dtype=np.int64)
    around = ((counts > 0) * per_image[:, None]).sum(0)  # pixels of the images that show the class
    occurs = pixels > 0
    frequency = np.divide(pixels, around, out=np.ones(len(pixels)), where=occurs)
    median = np.median(frequency[occurs]) if occurs.any() else 1.0
    return np.where(occurs, median / frequency, 1.0).tolist()


def rarity(counts: np.ndarray) -> list[float]:
    """For each class the weight with which a crop is laid around it: the inverse of its share of all pixels;
    0 for background, and for classes that don't occur.

    Args:
        counts: pixels per image and class, (N, C), background first.
    """
    pixels = counts.sum(0, dtype=np.int64)
    pixels[0] = 0
    return [pixels.sum().item() / count if count else 0.0 for count in pixels.tolist()]
