"""Errors in one line."""

import pytest

from cocoseg.errors import count_of, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such key\n    full_key: data.own"), "no such key"),
        (ValueError("\nno such key"), "no such key"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_first_line_of_a_message_or_the_class_of_the_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_number_and_its_noun() -> None:
    assert [count_of(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [count_of(number, "class") for number in (1, 3)] == ["1 class", "3 classes"]
