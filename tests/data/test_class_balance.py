import math

import numpy as np
import pytest

from cocoseg.data.class_balance import (
    class_weights,
    classes_in_one_set,
    classes_lost_by_resizing,
    require_classes,
)
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelClass, LabelMap
from tiny import LABELS

# Three images of 100 pixels, one with 20 ignored; class 3 does not occur.
COUNTS = np.array([[90, 10, 0, 0], [50, 0, 30, 0], [100, 0, 0, 0]], dtype=np.int32)


def test_weights_of_enet():
    expected = [1 / math.log(1.02 + pixels / 280) for pixels in (240, 10, 30)]
    assert class_weights(COUNTS) == pytest.approx([*expected, 1.0])


def test_weights_lie_between_their_bounds():
    weights = class_weights(np.array([[10**9, 1]]))
    assert weights == pytest.approx([1 / math.log(2.02), 1 / math.log(1.02)], rel=1e-4)


def test_nothing_but_ignored_pixels():
    assert class_weights(np.zeros((2, 3), np.int32)) == [1.0, 1.0, 1.0]


def test_more_pixels_than_an_int32_holds():
    counts = np.full((3, 2), 2**30, dtype=np.int32)
    assert class_weights(counts) == pytest.approx([class_weights(counts // 2**20)[0]] * 2)


def test_training_images_without_any_class_are_refused():
    require_classes(COUNTS, (32, 64))
    with pytest.raises(CocosegError, match=r"none of the 2 training images .* 64x32 pixels; .*image_size"):
        require_classes(np.array([[100, 0], [90, 0]]), (32, 64))


def test_classes_lost_by_resizing_are_named():
    (warning,) = classes_lost_by_resizing([90, 5, 3], counts({0, 1}, {0}), counts({0}), labels=LABELS)
    assert "too small to be seen at the network's size: dog; raise data.image_size" in warning
    assert classes_lost_by_resizing([90, 5, 0], counts({0, 1}), counts({0}), labels=LABELS) == []
    assert classes_lost_by_resizing([90, 5, 3], counts({0, 1}), counts({2}), labels=LABELS) == []


# --- classes on one side only


def counts(*shown: set[int]) -> np.ndarray:
    """Pixels per class, (N, C), of images that show these classes."""
    return np.array([[9 * (label in classes) for label in range(3)] for classes in shown], dtype=np.int32)


def test_classes_that_only_one_set_shows():
    learned, scored = classes_in_one_set(counts({0, 1}, {0}), counts({0, 2}), LABELS)
    assert learned.startswith("classes in validation, but on no training image: dog; their IoU is 0")
    assert "data.subset.size" in learned
    assert scored.startswith("classes on training images, but not in validation: cat; no score")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (counts({0, 1, 2}), counts({0, 1}, {2})),
        (counts({1, 2}), counts({0, 1, 2})),  # background is left out
        (counts({0, 1}), counts({0, 1})),  # the report of the preparation names class 2
    ],
)
def test_classes_in_both_sets_or_none_give_no_warning(train, val):
    assert classes_in_one_set(train, val, LABELS) == []


def test_many_classes_are_counted():
    labels = LabelMap(tuple(LabelClass((i,), f"c{i}", (0, 0, 0)) for i in range(9)))
    train = np.ones((4, 9), dtype=np.int32)
    val = train * [1, 1, 0, 0, 0, 0, 0, 0, 0]
    (message,) = classes_in_one_set(train, val, labels)
    assert message.startswith(
        "classes on training images, but not in validation: c2, c3, c4, c5, c6, 2 more; "
    )
