import numpy as np
import pytest

from cocoseg.errors import CocosegError
from cocoseg.evaluation.label_matching import match_labels
from cocoseg.labels import LabelClass, LabelMap


def labels(*names: str, first: int = 1) -> LabelMap:
    classes = [LabelClass((number,), name, (0, 0, 0)) for number, name in enumerate(names, start=first)]
    return LabelMap((LabelClass((), "background", (0, 0, 0)), *classes))


def test_the_same_labels_are_left_alone() -> None:
    matching = match_labels(labels("cat", "dog"), labels("cat", "dog"), "same")
    prediction = np.array([[0, 1, 2]], dtype=np.uint8)
    assert matching.is_same
    assert matching(prediction) is prediction


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (labels("cat"), r"2 classes against 1 in the data; labels=match"),
        (labels("dog", "cat"), r"class 1 is 'cat' .* against 'dog'"),
        (labels("cat", "dog", first=5), r"\(id 1\) against 'cat' \(id 5\)"),
    ],
)
def test_other_labels_are_refused(data: LabelMap, message: str) -> None:
    with pytest.raises(CocosegError, match=message):
        match_labels(labels("cat", "dog"), data, "same")


def test_names_are_matched() -> None:
    matching = match_labels(labels("cat", "dog", "zebra"), labels(" Dog", "apple", "CAT", first=7), "match")

    assert matching(np.array([[0, 1], [2, 3]], dtype=np.uint8)).tolist() == [[0, 3], [1, 0]]
    assert not matching.is_same
    assert matching.never_predicted == ["apple"]
    assert matching.as_background == ["zebra"]


def test_the_same_labels_under_match() -> None:
    assert match_labels(labels("cat"), labels("cat"), "match").is_same


def test_labels_that_have_nothing_in_common() -> None:
    with pytest.raises(
        CocosegError, match=r"none of the model's classes \(cat\) .* of the data's \(dog, ape\)"
    ):
        match_labels(labels("cat"), labels("dog", "ape"), "match")


def test_a_name_that_occurs_twice() -> None:
    with pytest.raises(CocosegError, match="the data has two classes of the name 'CAT'"):
        match_labels(labels("cat"), labels("cat", "CAT"), "match")
