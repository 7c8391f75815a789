import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from cocoseg.evaluation.bootstrap import intervals
from cocoseg.labels import IGNORE_INDEX
from cocoseg.scores import SUMMARY, Counts, Scores, confusion

CLASSES = 5


def masks(seed: int, height: int = 40, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction (H, W) uint8; class 3 does not occur, class 4 is never predicted."""
    generator = np.random.default_rng(seed)
    truth = generator.choice([0, 0, 0, 1, 2, 4, IGNORE_INDEX], (height, width)).astype(np.uint8)
    guess = generator.integers(0, 4, (height, width)).astype(np.uint8)
    prediction = np.where((generator.random((height, width)) < 0.6) & (truth < 4), truth, guess)
    return truth, prediction.astype(np.uint8)


# --- by hand; rows of a matrix are the targets


@pytest.mark.parametrize(
    ("matrix", "iou", "accuracy"),
    [
        # background 6 correct of 8 and 7 predicted; cat 3 of 4 and 4; dog 1 of 2 and 3
        ([[6, 1, 1], [0, 3, 1], [1, 0, 1]], [6 / 9, 3 / 5, 1 / 4], 10 / 14),
        ([[4, 0, 0], [1, 3, 0], [0, 0, 0]], [4 / 5, 3 / 4, None], 7 / 8),  # dog does not occur
        ([[4, 0, 1], [0, 3, 2], [0, 0, 0]], [4 / 5, 3 / 5, None], 7 / 10),  # but is predicted
        ([[4, 0, 0], [0, 3, 0], [2, 0, 0]], [4 / 6, 1, 0], 7 / 9),  # dog is never found
        ([[3, 1, 0], [0, 0, 0], [0, 0, 0]], [3 / 4, None, None], 3 / 4),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], [None, None, None], math.nan),
    ],
)
def test_scores_by_hand(matrix, iou, accuracy):
    scores = Scores.from_matrix(np.array(matrix))
    occurring = [value for value in iou if value is not None]
    objects = [value for value in iou[1:] if value is not None]

    assert scores.iou == pytest.approx(iou)
    assert scores.miou == pytest.approx(np.mean(objects) if objects else math.nan, nan_ok=True)
    expected = np.mean(occurring) if occurring else math.nan
    assert scores.miou_with_background == pytest.approx(expected, nan_ok=True)
    assert scores.pixel_accuracy == pytest.approx(accuracy, nan_ok=True)


def test_counts_beyond_what_float32_holds():
    big = 2**24 + 1

    assert Scores.from_matrix(np.array([[big, 0], [1, big]])).pixel_accuracy == 2 * big / (2 * big + 1)


# --- against scikit-learn


def test_the_matrix_is_scikit_learns() -> None:
    truth, prediction = masks(0)
    counted = truth != IGNORE_INDEX
    expected = confusion_matrix(truth[counted], prediction[counted], labels=range(CLASSES))
    np.testing.assert_array_equal(confusion(truth, prediction, CLASSES), expected)


def test_254_classes_fit() -> None:
    truth = np.array([[255, 254, 0], [254, 1, 255]], dtype=np.uint8)
    prediction = np.array([[254, 254, 254], [0, 1, 0]], dtype=np.uint8)
    matrix = confusion(truth, prediction, 255)
    assert matrix.sum() == 4
    assert matrix[254, 254] == matrix[0, 254] == matrix[254, 0] == matrix[1, 1] == 1


def test_scores_are_scikit_learns() -> None:
    truth, prediction = masks(1)
    counts = Counts.from_matrix(confusion(truth, prediction, CLASSES))
    counted = truth != IGNORE_INDEX
    y_true, y_pred = truth[counted], prediction[counted]
    options = {"labels": range(CLASSES), "average": None, "zero_division": 0}
    occurs = [0, 1, 2, 4]

    for name, function in (("iou", jaccard_score), ("dice", f1_score), ("recall", recall_score)):
        expected = function(y_true, y_pred, **options)
        found = getattr(counts, name)()
        np.testing.assert_allclose(found[occurs], expected[occurs])
        assert np.isnan(found[3])
    precision = counts.precision()
    np.testing.assert_allclose(precision[:4], precision_score(y_true, y_pred, **options)[:4])
    assert np.isnan(precision[4])
    share = np.bincount(y_true, minlength=CLASSES) / len(y_true)
    np.testing.assert_allclose(counts.share(), share)
    summary, iou = counts.summary(), jaccard_score(y_true, y_pred, **options)
    assert summary.keys() == SUMMARY.keys()
    assert summary["miou"] == pytest.approx(iou[occurs[1:]].mean())
    assert summary["miou_with_background"] == pytest.approx(iou[occurs].mean())
    assert summary["pixel_accuracy"] == pytest.approx((y_true == y_pred).mean())
    assert summary["frequency_weighted_iou"] == pytest.approx((share * iou).sum())
    dice = f1_score(y_true, y_pred, **options)
    assert summary["dice"] == pytest.approx(dice[occurs[1:]].mean())
    assert summary["dice_with_background"] == pytest.approx(dice[occurs].mean())


@pytest.mark.filterwarnings("error")
def test_nothing_to_score_is_not_a_number() -> None:
    counts = Counts(*np.zeros((3, 2, CLASSES), dtype=np.int64))
    for name, values in counts.summary().items():
        assert values.shape == (2,), name
        assert np.isnan(values).all(), name


def test_many_sets_at_once_are_each_alone() -> None:
    matrices = np.stack([confusion(*masks(seed), CLASSES) for seed in range(3)])
    together = Counts.from_matrix(matrices)
    for number, matrix in enumerate(matrices):
        alone = Counts.from_matrix(matrix)
        np.testing.assert_array_equal(together.iou()[number], alone.iou())
        for name, value in alone.summary().items():
            assert together.summary()[name][number] == value


# Intervals


def image_counts(number: int) -> Counts:
    """Counts of images of different difficulty."""
    matrices = np.stack([confusion(*masks(seed, 5 + seed % 7, 9), CLASSES) for seed in range(number)])
    return Counts.from_matrix(matrices)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Sets drawn image by image, from other random numbers."""
    images = image_counts(40)
    generator = np.random.default_rng(99)
    drawn = generator.integers(0, 40, (4000, 40))
    sums = Counts(*(part[drawn].sum(1) for part in images))
    plain = np.stack([sums.summary()["miou"], sums.iou()[:, 1]], axis=1)
    expected = np.quantile(plain, [0.025, 0.975], axis=0)

    found = intervals(images, seed=0, resamples=4000)

    np.testing.assert_allclose(found["miou"], expected[:, 0], atol=0.006)
    np.testing.assert_allclose(found["iou"][:, 1], expected[:, 1], atol=0.012)


def test_intervals_hold_the_score_and_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_counts(30)
    whole = Counts(images.correct.sum(0), images.target.sum(0), images.predicted.sum(0)).summary()
    first = intervals(images, seed=3)
    for name in SUMMARY:
        low, high = first[name]
        assert low < whole[name] < high, name
    np.testing.assert_array_equal(first["iou"], intervals(images, seed=3)["iou"])
    assert not np.array_equal(first["miou"], intervals(images, seed=4)["miou"])


def test_intervals_narrow_with_more_images() -> None:
    few, many = (np.ptp(intervals(image_counts(number), seed=0)["miou"]) for number in (20, 320))
    assert 2.5 < few / many < 6.5  # about the root of 16


@pytest.mark.filterwarnings("error")
def test_a_class_that_no_image_shows_has_no_interval() -> None:
    found = intervals(image_counts(10), seed=0)["iou"]
    assert np.isnan(found[:, 3]).all()
    assert not np.isnan(found[:, [0, 1, 2, 4]]).any()


def test_the_interval_holds_the_middle_95_percent() -> None:
    """Of a hundred images of one pixel half are right: 40 to 60, by the binomial distribution."""
    images = Counts.from_matrix(np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]]] * 50))
    found = intervals(images, seed=0, resamples=4000)["pixel_accuracy"]
    assert found.tolist() == pytest.approx([0.4, 0.6], abs=0.011)


def test_sets_without_a_class_do_not_count_for_its_interval() -> None:
    """One of ten images shows the class, and 3 of its 4 pixels are right; a third of the sets lack it."""
    shown, absent = [[10, 0], [1, 3]], [[20, 0], [0, 0]]
    images = Counts.from_matrix(np.array([shown, *[absent] * 9]))
    assert intervals(images, seed=0)["iou"][:, 1].tolist() == [0.75, 0.75]


@pytest.mark.filterwarnings("error")
def test_a_single_image() -> None:
    low, high = intervals(image_counts(1), seed=0)["miou"]
    assert low == high == pytest.approx(image_counts(1).summary()["miou"][0])
