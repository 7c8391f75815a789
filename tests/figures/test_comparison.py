import numpy as np
import pytest

from cocoseg.figures.comparison import GAP, Example, draw_comparison, draw_sheet, spread
from cocoseg.figures.text import LINE
from cocoseg.labels import IGNORE_COLOR
from tiny import LABELS

BLACK, RED, BLUE = (0, 0, 0), (255, 0, 0), (0, 0, 255)


def example(target: list[list[int]], prediction: list[list[int]], seed: int = 0) -> Example:
    masks = np.array(target, dtype=np.uint8), np.array(prediction, dtype=np.uint8)
    image = np.random.default_rng(seed).integers(0, 256, (*masks[0].shape, 3), dtype=np.uint8)
    return Example(image, *masks)


def blocks(rows: list[list[int]]) -> list[list[int]]:
    """Each value as a block of 80 x 80 pixels: two by two are neither enlarged nor shrunk."""
    return np.kron(np.array(rows), np.ones((80, 80), dtype=int)).tolist()


def test_a_comparison_is_image_target_prediction_and_error():
    shown = example(blocks([[0, 1], [2, 255]]), blocks([[0, 2], [2, 1]]))

    picture = np.asarray(draw_comparison(shown, LABELS))

    assert picture.shape == (160 + 2 * LINE, 4 * (160 + GAP) - GAP, 3)
    photo, target, prediction, error = (picture[:160, x : x + 160] for x in range(0, 4 * 164, 164))
    assert (photo == shown.image).all()
    assert (target[:80, :80] == BLACK).all()
    assert (target[:80, 80:] == RED).all()
    assert (target[80:, :80] == BLUE).all()
    paler = tuple(part // 2 + 96 for part in IGNORE_COLOR)
    assert {*map(tuple, target[80:, 80:].reshape(-1, 3).tolist())} == {paler, (64, 64, 64)}
    assert (prediction[:80, :80] == BLACK).all()
    assert (prediction[:80, 80:] == BLUE).all()
    assert (prediction[80:, :80] == BLUE).all()
    assert (prediction[80:, 80:] == RED).all()  # what is said of ignored pixels is shown
    reds = error[:80, 80:]
    assert reds[..., 0].min() >= 128
    assert reds[..., 1:].max() <= 42
    assert reds.std() > 0  # the image is seen through it
    for right in (error[:80, :80], error[80:, :80]):
        assert (right[..., 0] == right[..., 1]).all()  # gray
        assert right.max() <= 127
    assert np.ptp(error[80:, 80:], axis=-1).max() == 0  # ignored pixels are never errors
    for left in (160, 324, 488):
        assert (picture[:160, left : left + GAP] == 255).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (64, 64, (192, 192)),
        (180, 240, (240, 180)),
        (224, 224, (224, 224)),
        (512, 1024, (256, 128)),
        (1, 5000, (256, 1)),
        (1, 1, (160, 160)),
    ],
)
def test_small_images_are_enlarged_and_large_ones_shrunk(height, width, expected):
    mask = np.zeros((height, width), dtype=np.uint8)
    figure = draw_comparison(Example(np.zeros((height, width, 3), dtype=np.uint8), mask, mask), LABELS)
    assert figure.size == (4 * (expected[0] + GAP) - GAP, expected[1] + 2 * LINE)


def test_iou_of_one_image():
    half = example([[0, 0, 1, 1]], [[0, 0, 0, 0]])
    assert half.iou == pytest.approx((2 / 4 + 0) / 2)
    ignored = example([[0, 255, 1, 1]], [[0, 2, 1, 1]])
    assert ignored.iou == 1
    assert example([[255, 255]], [[0, 1]]).iou == 0  # nothing to be right about
    confused = example([[1, 1, 2]], [[1, 2, 2]])
    assert confused.iou == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_a_sheet_has_the_hardest_example_on_top():
    good = example(blocks([[1, 1], [1, 1]]), blocks([[1, 1], [1, 1]]), seed=1)
    bad = example(blocks([[1, 1], [1, 1]]), blocks([[2, 2], [2, 2]]), seed=2)

    pixels = np.asarray(draw_sheet([good, bad], LABELS))

    height = 160 + 2 * LINE
    assert pixels.shape[0] == 2 * height + GAP
    assert (pixels[:160, :160] == bad.image).all()
    assert (pixels[height + GAP : height + GAP + 160, :160] == good.image).all()


def test_indices_are_spread_from_the_first_to_the_last():
    assert spread(1000, 8) == [0, 143, 285, 428, 571, 714, 856, 999]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(1, 8) == [0]
    assert spread(0, 8) == []
