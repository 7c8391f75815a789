"""Agreement of the borders in a mask with the edges in its image. No torch."""

import numpy as np
import PIL.Image

from cocoseg.resizing import borders, resize_mask

LONGEST = 256  # pixels: the longer side is scaled down to it, because borders drawn by hand are not exact
FLOOR = 1e-3  # keeps the score of a flat image finite


def edge_score(image: PIL.Image.Image, mask: np.ndarray) -> float | None:
    """Compare edges along the borders in a mask with those in the whole image.

    Args:
        image: grayscale.
        mask: class indices (H, W) uint8 of the same size.

    Returns:
        the logarithm of the mean gradient at the borders over that of all pixels, which is 0 by chance; None
        without a border.
    """
    scale = min(1.0, LONGEST / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    outlines = borders(resize_mask(mask, (height, width)))
    if not outlines.any():
        return None
    pixels = np.asarray(image.resize((width, height), PIL.Image.Resampling.BOX), dtype=np.float32)
    gradient = np.zeros_like(pixels)
    gradient[:, 1:-1] = np.abs(pixels[:, 2:] - pixels[:, :-2])
    gradient[1:-1] += np.abs(pixels[2:] - pixels[:-2])
    return float(np.log((gradient[outlines].mean() + FLOOR) / (gradient.mean() + FLOOR)))
