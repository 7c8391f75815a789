"""Boundary regions and Boundary IoU on small masks: `.` is background, `?` is ignored."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from cocoseg.evaluation.boundary import boundary, boundary_counts
from cocoseg.evaluation.report import BOUNDARY, View, as_text
from tiny import LABELS

VALUES = {".": 0, "a": 1, "b": 2, "?": 255}
SQUARE = "........ .aaaaa.. .aaaaa.. .aaaaa.. .aaaaa.. .aaaaa.. ........"
SHIFTED = "........ ..aaaaa. ..aaaaa. ..aaaaa. ..aaaaa. ..aaaaa. ........"


def mask_from_text(rows: str) -> np.ndarray:
    return np.array([[VALUES[letter] for letter in row] for row in rows.split()], np.uint8)


def region_by_erosion(inside: np.ndarray, distance: int) -> np.ndarray:
    """Pixels that erosions remove from a binary mask amid background, as the paper's authors compute it."""
    padded = np.pad(inside, 1)
    for _ in range(distance):
        around = np.pad(padded, 1, constant_values=True)
        padded = sliding_window_view(around, (3, 3)).all((2, 3))
    return inside & ~padded[1:-1, 1:-1]


def random_mask(generator: np.random.Generator) -> np.ndarray:
    """Blocks of 4 classes and ignored pixels, of random size."""
    coarse = generator.choice(np.array([0, 1, 2, 254, 255], np.uint8), (8, 8))
    height, width = generator.integers(1, 24, 2)
    return coarse.repeat(3, 0).repeat(3, 1)[:height, :width]


@pytest.mark.parametrize(
    ("distance", "mask", "region"),
    [
        (
            1,  # the image's edge is a contour: here that of the background
            "....... .aaaaa. .aaaaa. .aaaaa. .aaaaa. .aaaaa. .......",
            "####### ####### ##...## ##...## ##...## ####### #######",
        ),
        (
            2,
            "....... .aaaaa. .aaaaa. .aaaaa. .aaaaa. .aaaaa. .......",
            "####### ####### ####### ###.### ####### ####### #######",
        ),
        (1, "aaaa?? aaaa?? aaaa?? aaaa??", "####.. #..... #..... ####.."),  # ignored pixels make no contour
        (
            2,  # the other class is within the distance, across ignored pixels
            "aaaaa?bbbbb aaaaa?bbbbb aaaaa?bbbbb aaaaa?bbbbb aaaaa?bbbbb",
            "#####.##### #####.##### ##..#.#..## #####.##### #####.#####",
        ),
        (9, "ab ?a", "## .#"),  # the distance is larger than the image
    ],
)
def test_boundary_regions_of_small_masks(distance: int, mask: str, region: str) -> None:
    expected = np.array([[letter == "#" for letter in row] for row in region.split()])
    np.testing.assert_array_equal(boundary(mask_from_text(mask), distance), expected)


def test_counts_of_a_shifted_square() -> None:
    """A square of 5x5 pixels, predicted one pixel further right: 8 of the 16 pixels of its ring agree."""
    counts = boundary_counts(mask_from_text(SQUARE), mask_from_text(SHIFTED), 3)
    assert counts.correct.tolist() == [26, 8, 0]
    assert counts.target.tolist() == counts.predicted.tolist() == [31, 16, 0]
    np.testing.assert_array_equal(counts.iou(), [26 / 36, 8 / 24, np.nan])


@pytest.mark.parametrize(("size", "distance"), [((480, 640), 16), ((250, 300), 8), ((20, 20), 1)])
def test_the_distance_is_two_percent_of_the_diagonal(size: tuple[int, int], distance: int) -> None:
    nothing = np.zeros(size, np.uint8)
    frame = size[0] * size[1] - (size[0] - 2 * distance) * (size[1] - 2 * distance)
    assert boundary_counts(nothing, nothing, 1).target.tolist() == [frame]


def test_regions_equal_those_of_erosions_of_each_class() -> None:
    """Ignored pixels belong to each class while it is eroded, but to no region."""
    generator = np.random.default_rng(0)
    for distance in (1, 2, 3, 5) * 25:
        mask = random_mask(generator)
        found = boundary(mask, distance)
        for index in (0, 1, 2, 254, 255):
            of_class = mask == index
            eroded = region_by_erosion(of_class | (mask == 255), distance)
            np.testing.assert_array_equal(found & of_class, eroded & of_class & (mask != 255))


def test_predictions_of_ignored_pixels_have_no_effect() -> None:
    generator = np.random.default_rng(1)
    for _ in range(25):
        target = random_mask(generator)
        predicted = np.where(target == 255, generator.integers(0, 3, target.shape), target).astype(np.uint8)
        correct, expected, found = boundary_counts(target, predicted, 255)
        np.testing.assert_array_equal(correct, expected)
        np.testing.assert_array_equal(correct, found)


def test_pixels_of_the_set_are_summed() -> None:
    """The ring of 4x4 pixels of a second image is not found: its pixels are added, not its score."""
    view = View("own size", LABELS, seed=0)
    empty = "...... " * 6
    images = [(SQUARE, SHIFTED), ("...... .aaaa. .aaaa. .aaaa. .aaaa. ......", empty)]
    for target, predicted in images:
        view.add(mask_from_text(target), mask_from_text(predicted))
        view.add_boundary(mask_from_text(target), mask_from_text(predicted))
    scores = view.scores()
    assert scores["boundary_iou"]["cat"] == pytest.approx(8 / (24 + 12))
    assert scores[BOUNDARY] == scores["boundary_iou"]["cat"]  # dog does not occur, background is left out
    assert scores["boundary_iou"]["dog"] is None
    low, high = scores["intervals"][BOUNDARY]
    assert (low, high) == (0, pytest.approx(8 / 24))  # the sets that hold one image twice
    assert view.per_class()[1]["boundary_iou"] == scores["boundary_iou"]["cat"]
    lines = as_text([view, view]).splitlines()
    assert max(map(len, lines)) <= 100
    [line] = (line for line in lines if line.startswith("boundary IoU (without background)"))
    assert line.split()[4:] == ["0.000", "to", "0.333", "0.222", "0.222"]
