import numpy as np
import pytest

from cocoseg.figures.overlay import overlay
from cocoseg.labels import LabelMap
from cocoseg.preparation.coco_file import Category

LABELS = LabelMap.from_categories([Category(2, "cat"), Category(5, "dog"), Category(9, "eel")])
IGNORED = 255


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_edges_and_inner_pixels() -> None:
    """An object of each of two classes, side by side; the second reaches the border of the image."""
    image, mask = photo(12, 16), np.zeros((12, 16), np.uint8)
    mask[2:8, 3:9], mask[2:8, 9:16] = 1, 3
    expected = image.copy()
    for y, x in np.ndindex(12, 16):
        color = LABELS.classes[mask[y, x]].color
        beside = [(y, x + 1), (y, x - 1), (y + 1, x), (y - 1, x)]
        others = {mask[b, a] for b, a in beside if 0 <= b < 12 and 0 <= a < 16} - {mask[y, x]}
        if mask[y, x] and others:
            expected[y, x] = color
        elif mask[y, x]:
            expected[y, x] = [(int(i) + c) // 2 for i, c in zip(image[y, x], color, strict=True)]
    inner = (slice(4, 6), slice(5, 7))
    assert (expected[inner] != image[inner]).any()
    np.testing.assert_array_equal(overlay(image, mask, LABELS), expected)


@pytest.mark.parametrize("level", [0, 40, 100, 160, 254])
def test_ignored_pixels_are_striped(level: int) -> None:
    image = np.full((24, 24, 3), level, np.uint8)
    mask = np.zeros((24, 24), np.uint8)
    mask[4:20, 4:20] = IGNORED
    result = overlay(image, mask, LABELS)
    np.testing.assert_array_equal(result[mask == 0], image[mask == 0])
    region = result[mask == IGNORED]
    assert (region != level).any(axis=1).mean() > 0.7
    assert 2 <= len(np.unique(region, axis=0)) <= 3


def test_arguments_are_left_alone() -> None:
    image, mask = photo(9, 9), np.full((9, 9), IGNORED, np.uint8)
    mask[2:5] = 1
    before = image.copy(), mask.copy()
    result = overlay(image, mask, LABELS)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
