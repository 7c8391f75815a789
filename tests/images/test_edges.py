import numpy as np
import PIL.Image
import pytest

from cocoseg.images.edges import edge_score


def box(left: int, top: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + 20, left : left + 30] = 1
    return mask


def test_borders_on_edges_score_highest() -> None:
    image = PIL.Image.fromarray(100 * box(10, 5))
    on, near, off = (edge_score(image, box(left, 5)) for left in (10, 13, 45))
    assert on > near > off
    # Of 4,800 pixels some 196 lie at borders; they have all of the gradient.
    assert on == pytest.approx(np.log(4800 / 196), abs=0.1)


def test_a_flat_image_tells_nothing() -> None:
    assert edge_score(PIL.Image.new("L", (80, 60), 7), box(10, 5)) == 0


@pytest.mark.parametrize("value", [0, 3])
def test_a_mask_without_borders(value: int) -> None:
    assert edge_score(PIL.Image.new("L", (80, 60)), np.full((60, 80), value, np.uint8)) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3000, 2)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.uint8)
    mask[:, size[1] // 2 :] = 1
    score = edge_score(PIL.Image.fromarray(200 * mask), mask)
    assert score is None or np.isfinite(score)
