"""The survey is compared with counts over one canvas per class."""

import itertools
import json
import tracemalloc
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.config import MasksConfig
from cocoseg.preparation.coco_file import Image
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, parse_layers
from cocoseg.preparation.survey import COVERED, sample, survey

HEIGHT, WIDTH = 18, 24
RULES = ("max", "smallest", "ignore")

coordinates = st.integers(-6, 60).map(lambda value: value / 2)
points = st.integers(3, 6).flatmap(lambda n: st.lists(coordinates, min_size=2 * n, max_size=2 * n))
boxes = st.tuples(
    st.integers(-2, WIDTH), st.integers(-2, HEIGHT), st.integers(0, 20), st.integers(3, 16)
).map(lambda box: corners(box[0], box[1], box[0] + box[2], box[1] + box[3]))
broken = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(lambda part: len(part) != 6)
polygons = st.integers(0, 3).flatmap(
    lambda n: st.lists(st.one_of(points, boxes, boxes, broken), min_size=n, max_size=n)
)
regions = st.tuples(
    st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(0, 12), st.integers(0, 12)
).map(lambda box: runs(box[0], box[1], box[0] + box[2], box[1] + box[3]))
# Class index, segmentation, crowd.
annotations = st.tuples(
    st.sampled_from([1, 2, 2, 3, 254, 255]), st.one_of(polygons, regions), st.sampled_from([0, 0, 1])
)
scenes = st.integers(0, 7).flatmap(lambda n: st.lists(annotations, min_size=n, max_size=n))
rules = st.tuples(st.sampled_from(["pillow", "coco"]), st.sampled_from(["ignore", "draw", "skip"]))


def corners(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(top: int, left: int, bottom: int, right: int) -> dict[str, Any]:
    """Uncompressed RLE of a rectangle, its last row and column left out."""
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[top:bottom, left:right] = True
    groups = [(value, len(list(group))) for value, group in itertools.groupby(inside.T.ravel().tolist())]
    counts = [0] * bool(groups[0][0]) + [length for _, length in groups]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def instances_of(scene: list[tuple[int, Any, int]]) -> list[Instance]:
    return [
        Instance(number, index, bool(crowd), json.dumps(segmentation).encode())
        for number, (index, segmentation, crowd) in enumerate(scene, start=1)
    ]


def draw(
    instances: list[Instance], overlap: str = "max", rasterizer: str = "pillow", crowd: str = "ignore"
) -> np.ndarray:
    layers = parse_layers(instances, HEIGHT, WIDTH, crowd)
    return paint(layers, MasksConfig(overlap=overlap, rasterizer=rasterizer))


def survey_of(
    instances: list[Instance], rasterizer: str = "pillow", crowd: str = "ignore"
) -> dict[str, dict[int, int]]:
    """The result of the survey, without classes that have no pixel."""
    found = survey(parse_layers(instances, HEIGHT, WIDTH, crowd), rasterizer)
    return {name: some(pixels) for name, pixels in found.items()}


def coverage(instances: list[Instance], rasterizer: str, crowd: str) -> dict[int, np.ndarray]:
    """Class index -> the pixels that the class has if it is drawn alone."""
    objects = [i for i in instances if i.class_index != 255 and not (i.crowd and crowd != "draw")]
    return {
        index: draw([i for i in objects if i.class_index == index], "max", rasterizer, crowd) == index
        for index in {i.class_index for i in objects}
    }


def some(counts: dict[int, Any]) -> dict[int, int]:
    return {index: int(count) for index, count in counts.items() if count}


@settings(max_examples=40)
@given(scenes, rules)
def test_against_one_canvas_per_class(scene: list[tuple[int, Any, int]], rules: tuple[str, str]) -> None:
    rasterizer, crowd = rules
    instances = instances_of(scene)
    covers = coverage(instances, rasterizer, crowd)
    expected = {COVERED: some({index: covered.sum() for index, covered in covers.items()})}
    for rule in RULES:
        mask = draw(instances, rule, rasterizer, crowd)
        expected[rule] = some({index: (covered & (mask != index)).sum() for index, covered in covers.items()})
    assert survey_of(instances, *rules) == expected


# --- by hand

NOTHING: dict[str, dict[int, int]] = {rule: {} for rule in RULES}


def test_a_cup_on_a_table() -> None:
    assert survey_of([]) == {COVERED: {}, **NOTHING}
    table, cup = [corners(0, 0, 19, 9)], [corners(4, 4, 6, 6)]  # 20 x 10 and 3 x 3 pixels
    assert survey_of(instances_of([(67, table, 0), (47, cup, 0)])) == {
        COVERED: {67: 200, 47: 9},
        "max": {47: 9},
        "smallest": {67: 9},
        "ignore": {47: 9, 67: 9},
    }


def test_overlaps_within_a_class_and_crowds_beneath_hide_nothing() -> None:
    box = [corners(0, 0, 9, 9)]
    one_class = instances_of([(3, box, 0), (3, [corners(5, 5, 14, 14)], 0)])
    assert survey_of(one_class) == {COVERED: {3: 175}, **NOTHING}
    crowds = instances_of([(1, box, 0), (2, box, 1), (255, box, 0)])
    assert survey_of(crowds) == {COVERED: {1: 100}, **NOTHING}


def test_the_sample_is_seeded_and_bounded() -> None:
    images = [Image(i, 8, 6, f"{i}.jpg") for i in range(300)]
    assert len(sample(images, 0)) == 256
    assert sample(images, 0) == sample(images[::-1], 0) != sample(images, 1)
    assert sample(images[:10], 0) == set(range(10))


def test_memory_does_not_grow_with_the_classes() -> None:
    square = json.dumps([corners(5, 5, 600, 600)]).encode()
    layers = parse_layers([Instance(i, i, False, square) for i in range(1, 101)], 1000, 1000, "ignore")
    tracemalloc.start()
    found = survey(layers, "pillow")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["max"][1] == found[COVERED][1] > 0
    assert found["max"][100] == 0
    assert peak < 30e6  # a canvas has a million bytes
