import numpy as np
import pytest
import torch

from cocoseg.networks.pixels import resize_masks
from cocoseg.resizing import borders, resize_mask


def test_each_pixel_takes_the_one_below_its_center():
    row = np.arange(6, dtype=np.uint8)[None]
    assert resize_mask(row, (1, 2)).tolist() == [[1, 4]]  # centers at 1.5 and 4.5, pixels 1 and 4
    assert resize_mask(row, (1, 4)).tolist() == [[0, 2, 3, 5]]  # at 0.75, 2.25, 3.75, 5.25
    assert resize_mask(row, (2, 12)).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]] * 2


@pytest.mark.parametrize("size", [(17, 33), (9, 17), (3, 40), (1, 1), (51, 66)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_tensors_and_arrays_are_resized_to_the_same_pixels(size, dtype):
    """So far as no center lies between two pixels, as these sizes have it."""
    masks = np.random.default_rng(0).integers(0, 256, (2, 17, 33), dtype=np.uint8)
    expected = np.stack([resize_mask(mask, size) for mask in masks])
    found = resize_masks(torch.from_numpy(masks).to(dtype), size)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), expected)


def test_borders_lie_on_both_sides():
    mask = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 2, 2]])
    assert borders(mask).astype(int).tolist() == [
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
    ]
