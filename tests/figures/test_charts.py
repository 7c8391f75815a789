import numpy as np
import pytest

from cocoseg.figures.charts import (
    BAR,
    CORRECT,
    ERROR,
    LENGTH,
    MARGIN,
    SHARES,
    confusion_matrix,
    iou_bars,
    reliability,
)
from cocoseg.labels import LabelClass, LabelMap
from tiny import LABELS


def many(count: int) -> list[str]:
    return [f"class number {index}" for index in range(count)]


def has(figure, color) -> int:
    """Pixels of exactly this color."""
    return int((np.asarray(figure) == color).all(-1).sum())


def test_a_perfect_matrix_has_full_cells_on_its_diagonal_only():
    figure = confusion_matrix(np.diag([5, 70, 900]), LABELS.names)
    pixels = (np.asarray(figure) == CORRECT).all(-1)
    y, x = np.nonzero(pixels)
    cells = {(yy // 56, xx // 56) for yy, xx in zip(y - y.min(), x - x.min(), strict=True)}
    assert cells == {(0, 0), (1, 1), (2, 2)}
    assert has(figure, ERROR) == 0


def test_rows_are_divided_by_their_sum():
    few_and_many = np.array([[10, 0, 0], [3, 0, 0], [900_000, 0, 100_000]])
    figure = confusion_matrix(few_and_many, LABELS.names)
    # All of `cat` is taken for background, however few pixels that are.
    assert has(figure, ERROR) > 1000
    assert has(figure, CORRECT) > 1000


def test_classes_that_do_not_occur_are_left_out():
    matrix = np.zeros((81, 81), dtype=np.int64)
    matrix[0, 0] = matrix[7, 7] = 10
    names = many(81)
    small = confusion_matrix(matrix, names)
    matrix[3, 0] = 1
    assert confusion_matrix(matrix, names).height == small.height + 56


@pytest.mark.parametrize(("classes", "cell"), [(7, 56), (81, 12), (254, 5)])
def test_a_matrix_is_readable_and_no_larger_than_a_screen_needs(classes, cell):
    matrix = np.random.default_rng(0).integers(1, 100, (classes, classes))
    figure = confusion_matrix(matrix, many(classes))
    assert classes * cell < figure.height < classes * cell + 200
    assert max(figure.size) < 1500


def test_no_pixel_at_all():
    nothing = np.zeros((3, 3), dtype=np.int64)
    assert confusion_matrix(nothing, LABELS.names).width > 0
    assert iou_bars([None, None, None], LABELS).width > 0


def bar_lengths(figure, color) -> list[int]:
    """Lengths of the bars of a color, from top to bottom, outlines included."""
    pixels = (np.asarray(figure) == color).all(-1)
    rows = np.flatnonzero(pixels.sum(1) > 3)
    tops = [row for row in rows if row - 1 not in rows]
    return [int(pixels[row].sum()) + 2 for row in tops]


def test_bars_of_iou_in_the_colors_of_the_labels():
    figure = iou_bars([0.5, None, 1.0], LABELS)
    assert bar_lengths(figure, (0, 0, 255)) == [LENGTH + 1]
    assert has(figure, (255, 0, 0)) == 0
    blue = np.flatnonzero((np.asarray(figure) == (0, 0, 255)).all(-1).any(1))
    assert blue.max() < figure.height - MARGIN - 16  # the best class is on top


def test_a_long_name_does_not_squeeze_the_bars():
    labels = LabelMap((LabelClass((), "background", (0, 0, 0)), LabelClass((1,), "x" * 500, (9, 200, 9))))
    figure = iou_bars([0.1, 1.0], labels)
    assert figure.width < 800
    assert bar_lengths(figure, (9, 200, 9)) == [LENGTH + 1]


def test_bars_of_accuracy_above_those_of_shares():
    """Bins without a pixel have no bar; the line of a perfect model lies over the others."""
    figure = reliability(np.array([0, 25, 0, 75]), np.array([0, 50, 0, 150]), 0.1)
    is_bar = (np.asarray(figure) == BAR).all(-1)
    columns = np.flatnonzero(is_bar.any(0))
    left = np.diff(columns).argmax() + 1  # first column of the second bar
    for bar, accuracy, share in ((columns[:left], 0.5, 0.25), (columns[left:], 0.5, 0.75)):
        assert len(bar) == pytest.approx(LENGTH / 4, abs=2)
        heights = is_bar[:, bar].sum(0)
        assert np.median(heights) == pytest.approx(LENGTH * accuracy + SHARES * share, abs=5)
    assert reliability(np.zeros(15), np.zeros(15), float("nan")).width == figure.width
