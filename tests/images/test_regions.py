import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from cocoseg.images.regions import CORNER, Region, find_regions, outline
from cocoseg.preparation.segmentations import is_normalized


def masks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Noise of many densities, with tiny regions, holes and corners that touch, and smooth regions."""
    generator = np.random.default_rng(seed)
    found = [np.zeros((1, 1), np.uint8), np.ones((5, 1), np.uint8), np.eye(6, dtype=np.uint8)]
    for number in range(count):
        height, width = generator.integers(1, 24, 2)
        values = generator.random((height, width))
        if number % 2:
            values = ndimage.gaussian_filter(values, 1)
        cuts = np.quantile(values, np.sort(generator.random(generator.integers(1, 4))))
        found.append(np.digitize(values, cuts).astype(np.uint8))
    return found


def pixels_of(region: Region, shape: tuple[int, int]) -> np.ndarray:
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(region.starts, region.lengths, strict=True):
        flat[start : start + length] = True
    return flat.reshape(shape[::-1]).T


def test_regions_are_those_of_scipy():
    for mask in masks(40):
        weights = np.random.default_rng(0).integers(0, 256, mask.shape, dtype=np.uint8)
        found = np.zeros(mask.shape, int)
        counts = dict.fromkeys(np.unique(mask).tolist(), 0)
        for number, region in enumerate(find_regions(mask, weights), start=1):
            inside = pixels_of(region, mask.shape)
            assert not found[inside].any()
            assert ndimage.label(inside)[1] == 1
            assert (mask[inside] == region.value).all()
            assert (region.area, region.mean) == (inside.sum(), pytest.approx(weights[inside].mean()))
            found[inside] = number
            counts[region.value] += 1
        assert found.all()
        assert counts == {value: ndimage.label(mask == value)[1] for value in counts}


def test_the_outline_of_a_ring_is_cut_open():
    """In pixels: 1 to 4 from left to right, 0 to 3 from top to bottom; the hole is 2 to 3 by 1 to 2."""
    mask = np.zeros((5, 6), np.uint8)
    mask[0:4, 1:5] = 1
    mask[1:3, 2:4] = 0
    (ring,) = (region for region in find_regions(mask, mask) if region.value)
    points = [
        *((1.01, 0.01), (4.01, 0.01)),  # along the top to the slit, and down it
        *((4.01, 0.99), (1.99, 0.99), (1.99, 3.01), (4.01, 3.01), (4.01, 0.99)),  # around the hole
        *((4.01, 0.01), (4.99, 0.01), (4.99, 3.99), (1.01, 3.99)),  # up again, and on
    ]
    np.testing.assert_allclose(np.reshape(outline(ring, 5), (-1, 2)), points)


def test_a_pixel_in_the_corner_looks_like_no_share_of_the_image():
    (pixel, _) = find_regions(np.array([[1, 0, 0]], np.uint8), np.zeros((1, 3), np.uint8))
    assert outline(pixel, 1) == CORNER
    assert not is_normalized([CORNER], 1, 3)
    assert is_normalized([CORNER, CORNER], 1, 3)


def test_pillow_fills_an_outline_exactly():
    for mask in masks(40):
        image = PIL.Image.new("L", mask.shape[::-1], 255)
        for region in find_regions(mask, mask):
            points = outline(region, len(mask))
            assert len(points) >= 8
            alone = PIL.Image.new("1", image.size)
            PIL.ImageDraw.Draw(alone).polygon(points, fill=1)
            np.testing.assert_array_equal(np.asarray(alone), pixels_of(region, mask.shape))
            PIL.ImageDraw.Draw(image).polygon(points, fill=region.value)
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_pycocotools_fills_an_outline_exactly():
    for mask in masks(40):
        for region in find_regions(mask, mask):
            (encoded,) = coco_mask.frPyObjects([outline(region, len(mask))], *mask.shape)
            np.testing.assert_array_equal(coco_mask.decode(encoded), pixels_of(region, mask.shape))
