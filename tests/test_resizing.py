import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cocoseg.networks.pixels import resize_masks
from cocoseg.resizing import nearest_indices, resize_mask


def test_each_pixel_takes_the_one_below_its_center():
    row = np.arange(6, dtype=np.uint8)[None]
    assert resize_mask(row, (1, 2)).tolist() == [[1, 4]]  # centers at 1.5 and 4.5, pixels 1 and 4
    assert resize_mask(row, (1, 4)).tolist() == [[0, 2, 3, 5]]  # at 0.75, 2.25, 3.75, 5.25
    assert resize_mask(row, (2, 12)).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]] * 2


@pytest.mark.parametrize("size", [(17, 33), (9, 17), (3, 40), (1, 1), (288, 224), (100, 7)], ids=str)
@pytest.mark.parametrize("own", [(17, 33), (480, 640), (2048, 11)], ids=str)
def test_tensors_and_arrays_are_resized_to_the_same_pixels(own, size):
    masks = np.random.default_rng(0).integers(0, 256, (2, *own), dtype=np.uint8)
    expected = np.stack([resize_mask(mask, size) for mask in masks])
    for dtype in (torch.uint8, torch.int64):
        found = resize_masks(torch.from_numpy(masks).to(dtype), size)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.numpy(), expected)


def test_only_ties_are_resized_otherwise_than_torch_does():
    """A center between two pixels: Pillow's and torch's sums are rounded differently there."""
    for old, new in [(480, 96), (640, 128), (333, 224), (500, 320), (2048, 288), (97, 1000)]:
        theirs = F.interpolate(torch.arange(old).double()[None, None], (new,), mode="nearest-exact")[0, 0]
        different = np.flatnonzero(nearest_indices(old, new) != theirs.long().numpy())
        assert all((2 * i + 1) * old % (2 * new) == 0 for i in different)
