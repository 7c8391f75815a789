import numpy as np
import pytest

from cocoseg.evaluation.calibration import BINS, Calibration


def calibration(*images: tuple[list[int], list[int], list[float]]) -> Calibration:
    """Calibration of images, each given as targets, predictions and confidences of its pixels."""
    found = Calibration()
    for target, predicted, confidence in images:
        found.add(
            np.array([target], np.uint8), np.array([predicted], np.uint8), np.array([confidence], np.float32)
        )
    return found


def test_the_error_of_a_few_pixels() -> None:
    """Of two pixels with confidence 0.9 one is right: |1 - 1.8|. One is right at 0.42, one wrong at 0.62.

    Ignored pixels don't count.
    """
    found = calibration(([1, 2, 0, 3, 255], [1, 1, 0, 2, 2], [0.9, 0.9, 0.42, 0.62, 0.3]))
    assert found.pixels.tolist() == [0] * 6 + [1, 0, 0, 1, 0, 0, 0, 2, 0]
    assert found.correct.tolist() == [0] * 6 + [1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert found.error() == pytest.approx((0.8 + 0.58 + 0.62) / 4)


def test_bins_include_their_upper_end() -> None:
    found = calibration(([0] * 5, [0] * 5, [0.0, 0.0666, 0.0667, 0.2, 1.0]))
    assert found.pixels.tolist() == [2, 1, 1, *[0] * 11, 1]


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    """This holds for the whole set; neither image alone is calibrated."""
    assert calibration(([1, 1], [1, 1], [0.75, 0.75]), ([1, 2], [1, 1], [0.75, 0.75])).error() == 0


def test_the_error_follows_its_definition() -> None:
    generator = np.random.default_rng(0)
    target, predicted = generator.integers(0, 3, (2, 40, 50)).astype(np.uint8)
    target[:, :9] = 255
    confidence = generator.random((40, 50), np.float32)
    found = Calibration()
    target[21::2], predicted[21::2], confidence[21::2] = target[20::2], predicted[20::2], confidence[20::2]
    for rows in (slice(0, 7), slice(7, 20), slice(20, 40, 2)):  # each row of the last slice stands for two
        found.add(target[rows], predicted[rows], confidence[rows], rows.step or 1)
    counted = target != 255
    expected = 0.0
    for index in range(BINS):
        chosen = counted & (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        accuracy = (target == predicted)[chosen].mean()
        expected += chosen.sum() / counted.sum() * abs(accuracy - confidence[chosen].mean())
    assert found.error() == pytest.approx(expected)
    assert 0.1 < expected < 0.4


def test_the_error_of_no_pixel_is_nan() -> None:
    assert np.isnan(calibration(([255], [1], [0.5])).error())
