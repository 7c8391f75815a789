"""Faults of annotations that are no errors, by hand."""

import json
from typing import Any

import pytest

from cocoseg.preparation.segmentations import BROKEN, EMPTY, FLAT, OUTSIDE, Instance, parse_layers

HEIGHT, WIDTH = 18, 24


def corners(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def rle(*counts: int) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": list(counts)}


def warnings_of(*scene: tuple[int, Any, int], crowd: str = "ignore") -> dict[str, list[int]]:
    """Warnings about annotations of these class indices, segmentations and crowd flags; ids count from 1."""
    instances = [
        Instance(number, index, bool(is_crowd), json.dumps(segmentation).encode())
        for number, (index, segmentation, is_crowd) in enumerate(scene, start=1)
    ]
    warnings = parse_layers(instances, HEIGHT, WIDTH, crowd).warnings()
    return {what: sorted(ids) for what, ids in warnings.items()}


@pytest.mark.parametrize("index", [1, 255])
@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ([[1, 1, 5, 5], corners(1, 1, 5, 5)], [BROKEN]),
        ([[1, 1, 5, 5, 9], corners(1, 1, 5, 5)], [BROKEN]),
        ([[1, 1, 5, 5]], [BROKEN, EMPTY]),
        ([[]], [BROKEN, EMPTY]),
        ([], [EMPTY]),
        (None, [EMPTY]),
        ([corners(0, 0, WIDTH, HEIGHT)], []),
        ([corners(0, 0, WIDTH + 0.5, HEIGHT)], [OUTSIDE]),
        ([corners(0, 0, WIDTH, HEIGHT + 0.5)], [OUTSIDE]),
        ([corners(-0.5, 0, 5, 5)], [OUTSIDE]),
        ([corners(1, 1, 5, 5), corners(0, -1, 5, 5)], [OUTSIDE]),
        ([[1, 1, 5, 5, 3, 3]], [FLAT]),
        ([[1, 1, 5, 5, 3, 3], corners(1, 1, 2, 2)], []),
        ([corners(30, 3, 30, 9)], [OUTSIDE, FLAT]),
        (rle(HEIGHT * WIDTH), [FLAT]),
        (rle(0, 1, HEIGHT * WIDTH - 1), []),
    ],
)
def test_warnings(segmentation: Any, what: list[str], index: int) -> None:
    sound = [corners(2, 2, 9, 9)]
    assert warnings_of((2, sound, 0), (index, segmentation, 0), (3, sound, 0)) == {text: [2] for text in what}


def test_warnings_name_every_annotation() -> None:
    flat, outside = [[1, 1, 5, 5, 3, 3]], [corners(-3, 1, 5, 5)]
    scene = [(1, flat, 0), (1, outside, 1), (1, [], 1), (2, outside, 0), (2, flat, 1)]
    assert warnings_of(*scene, crowd="draw") == {FLAT: [1, 5], OUTSIDE: [2, 4], EMPTY: [3]}
    assert warnings_of(*scene, crowd="skip") == {FLAT: [1], OUTSIDE: [4]}
