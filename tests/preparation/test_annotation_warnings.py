"""Faults of annotations that are no errors, by hand."""

import json
from typing import Any

import pytest

from cocoseg.preparation.segmentations import LEFT_OUT, NORMALIZED, OUTSIDE, Instance, parse_layers

HEIGHT, WIDTH = 18, 24


def corners(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def warnings_of(*scene: tuple[int, Any, int], crowd: str = "ignore") -> dict[str, list[int]]:
    """Warnings about annotations of these class indices, segmentations and crowd flags; ids count from 1."""
    instances = [
        Instance(number, index, bool(is_crowd), json.dumps(segmentation).encode())
        for number, (index, segmentation, is_crowd) in enumerate(scene, start=1)
    ]
    return parse_layers(instances, HEIGHT, WIDTH, crowd).warnings()


@pytest.mark.parametrize("index", [1, 255])
@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ([[1, 1, 5, 5], corners(1, 1, 5, 5)], [LEFT_OUT]),
        ([[1, 1, 5, 5, 9], corners(1, 1, 5, 5)], [LEFT_OUT]),
        ([[1, 1, 5, 5]], [LEFT_OUT]),
        ([[]], [LEFT_OUT]),
        ([], [LEFT_OUT]),
        (None, [LEFT_OUT]),
        ([corners(0, 0, WIDTH, HEIGHT)], []),
        ([corners(0, 0, WIDTH + 0.5, HEIGHT)], [OUTSIDE]),
        ([corners(0, 0, WIDTH, HEIGHT + 0.5)], [OUTSIDE]),
        ([corners(-0.5, 0, 5, 5)], [OUTSIDE]),
        ([corners(1, 1, 5, 5), corners(0, -1, 5, 5)], [OUTSIDE]),
        ([[1, 1], corners(0, -1, 5, 5)], [LEFT_OUT, OUTSIDE]),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, []),
        ([corners(0.1, 0.2, 0.5, 0.9)], [NORMALIZED]),
        ([corners(0, 0, 1, 0.5), corners(0, 0, 1.0000001, 1)], [NORMALIZED]),
        ([corners(0, 0, 1, 1)], []),  # pixels of the corner
        ([corners(0.1, 0.2, 0.5, 1.5)], []),
        ([corners(0.1, 0.2, 0.5, 0.9), corners(1, 1, 5, 5)], []),
    ],
)
def test_warnings(segmentation: Any, what: list[str], index: int) -> None:
    sound = [corners(2, 2, 9, 9)]
    assert warnings_of((2, sound, 0), (index, segmentation, 0), (3, sound, 0)) == {text: [2] for text in what}


def test_warnings_name_every_annotation_that_is_drawn() -> None:
    outside = [corners(-3, 1, 5, 5)]
    scene = [(1, outside, 0), (1, outside, 1), (1, [], 1), (2, [], 0)]
    assert warnings_of(*scene, crowd="draw") == {OUTSIDE: [1, 2], LEFT_OUT: [3, 4]}
    assert warnings_of(*scene, crowd="skip") == {OUTSIDE: [1], LEFT_OUT: [4]}
