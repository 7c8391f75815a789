"""Masks are compared with pictures drawn by hand, and with slow and simple ways to draw them."""

import itertools
import json
import random
import time
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cocoseg.config import MasksConfig
from cocoseg.errors import CocosegError
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import LEFT_OUT, Instance, parse_layers, rle_runs

HEIGHT, WIDTH = 6, 8
BOX = [1, 1, 5, 1, 5, 4, 1, 4]  # x 1..5, y 1..4
KINDS = ("polygon", "runs", "compressed")


def instance(segmentation: Any, class_index: int = 1, *, crowd: bool = False) -> Instance:
    content = segmentation if isinstance(segmentation, bytes) else json.dumps(segmentation).encode()
    return Instance(77, class_index, crowd, content)


class Drawn(NamedTuple):
    mask: np.ndarray  # (H, W) uint8 class indices
    left_out: int  # annotations of which something, or all, could not be drawn


def draw(*instances: Instance, height: int = HEIGHT, width: int = WIDTH, **rules: str) -> Drawn:
    settings = MasksConfig(**rules)
    layers = parse_layers(instances, height, width, settings.crowd)
    mask = paint(layers, settings)
    assert mask.shape == (height, width)
    assert mask.dtype == np.uint8
    return Drawn(mask, len(layers.warnings().get(LEFT_OUT, ())))


def picture(drawn: Drawn) -> list[str]:
    """A row of characters per row of pixels; ignored pixels are #."""
    return ["".join({0: ".", 255: "#"}.get(v, str(v)) for v in row) for row in drawn.mask.tolist()]


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """A rectangle, its last row and column included as Pillow draws polygons: (HEIGHT, WIDTH) bool."""
    region = np.zeros((HEIGHT, WIDTH), dtype=bool)
    region[max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)] = True
    return region


def corners(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def runs(region: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, beginning with background."""
    groups = [(value, len(list(group))) for value, group in itertools.groupby(region.T.ravel().tolist())]
    return [0] * bool(groups[0][0]) + [length for _, length in groups]


def rle(region: np.ndarray, kind: str) -> dict[str, Any]:
    if kind == "runs":
        return {"size": list(region.shape), "counts": runs(region)}
    encoded = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {"size": list(region.shape), "counts": encoded["counts"].decode()}


# --- by hand


def test_polygon_pillow() -> None:
    assert picture(draw(instance([BOX], 3))) == [
        "........",
        ".33333..",
        ".33333..",
        ".33333..",
        ".33333..",
        "........",
    ]


def test_polygon_coco() -> None:
    assert picture(draw(instance([BOX], 3), rasterizer="coco")) == [
        "........",
        ".3333...",
        ".3333...",
        ".3333...",
        "........",
        "........",
    ]


@pytest.mark.parametrize("rasterizer", ["pillow", "coco"])
def test_parts_of_one_annotation(rasterizer: str) -> None:
    edge = 0 if rasterizer == "pillow" else 1
    parts = [corners(0, 0, 1 + edge, 1 + edge), corners(5, 3, 9, 9)]  # the second reaches out of the image
    assert picture(draw(instance(parts), rasterizer=rasterizer)) == [
        "11......",
        "11......",
        "........",
        ".....111",
        ".....111",
        ".....111",
    ]


@pytest.mark.parametrize("rasterizer", ["pillow", "coco"])
@pytest.mark.parametrize("kind", ["runs", "compressed"])
def test_rle_with_a_hole(kind: str, rasterizer: str) -> None:
    region = rectangle(1, 1, 5, 4) & ~rectangle(2, 2, 3, 3)
    below = instance([corners(0, 0, 9, 9)], 1)
    assert picture(draw(below, instance(rle(region, kind), 2), rasterizer=rasterizer)) == [
        "11111111",
        "12222211",
        "12112211",
        "12112211",
        "12222211",
        "11111111",
    ]


def test_overlap_max() -> None:
    instances = [
        instance([corners(2, 2, 6, 5)], 3),
        instance([corners(0, 0, 3, 3)], 2),
        instance([BOX], 1),
    ]
    for order in itertools.permutations(instances):
        assert picture(draw(*order, overlap="max")) == [
            "2222....",
            "222211..",
            "2233333.",
            "2233333.",
            ".133333.",
            "..33333.",
        ]


def test_overlap_smallest() -> None:
    large, medium, small = (
        instance([corners(0, 0, 7, 5)], 3),
        instance([corners(1, 1, 5, 4)], 1),
        instance([corners(4, 3, 6, 5)], 2),
    )
    for order in itertools.permutations([large, medium, small]):
        assert picture(draw(*order, overlap="smallest")) == [
            "33333333",
            "31111133",
            "31111133",
            "31112223",
            "31112223",
            "33332223",
        ]


def test_overlap_ignore() -> None:
    instances = [
        instance([corners(0, 0, 3, 3)], 2),
        instance([corners(3, 0, 4, 1)], 2),  # the same class: no dispute
        instance([corners(2, 2, 6, 5)], 1),
        instance([corners(3, 3, 7, 3)], 3),  # a third and fourth claim
        instance([corners(3, 3, 7, 3)], 4),
    ]
    for order in itertools.permutations(instances):
        assert picture(draw(*order, overlap="ignore")) == [
            "22222...",
            "22222...",
            "22##111.",
            "22######",
            "..11111.",
            "..11111.",
        ]


@pytest.mark.parametrize("overlap", ["max", "smallest", "ignore"])
@pytest.mark.parametrize("kind", KINDS)
def test_crowd(kind: str, overlap: str) -> None:
    region = rectangle(0, 1, 3, 3)
    shape = [corners(0, 1, 3, 3)] if kind == "polygon" else rle(region, kind)
    instances = [instance([corners(2, 0, 5, 2)], 1), instance(shape, 2, crowd=True)]

    assert picture(draw(*instances, crowd="ignore", overlap=overlap)) == [
        "..1111..",
        "##1111..",
        "##1111..",
        "####....",
        "........",
        "........",
    ]
    assert picture(draw(*instances, crowd="skip", overlap=overlap)) == [
        "..1111..",
        "..1111..",
        "..1111..",
        "........",
        "........",
        "........",
    ]
    both = {"max": "2", "ignore": "#"}
    if overlap in both:
        assert picture(draw(*instances, crowd="draw", overlap=overlap)) == [
            "..1111..",
            f"22{2 * both[overlap]}11..",
            f"22{2 * both[overlap]}11..",
            "2222....",
            "........",
            "........",
        ]


# --- against slow references

coordinates = st.one_of(
    st.integers(-4, 14), st.floats(-5, 15).map(lambda value: round(value, 2)), st.floats(-100, 100)
)
polygons = st.integers(3, 7).flatmap(lambda n: st.lists(coordinates, min_size=2 * n, max_size=2 * n))
scenes = st.lists(st.tuples(st.integers(1, 4), st.lists(polygons, min_size=1, max_size=3)), max_size=5)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=40)
@given(scenes, sizes)
def test_max_with_pillow_is_one_canvas_per_polygon(
    scene: list[tuple[int, list[list[float]]]], size: tuple[int, int]
) -> None:
    height, width = size
    expected = np.zeros(size, dtype=np.uint8)
    for class_index, parts in scene:
        for part in parts:
            canvas = PIL.Image.new("L", (width, height))
            PIL.ImageDraw.Draw(canvas).polygon(part, fill=class_index)
            expected = np.maximum(expected, np.array(canvas))
    instances = [instance(parts, class_index) for class_index, parts in scene]
    drawn = draw(*instances, height=height, width=width, overlap="max", rasterizer="pillow")
    np.testing.assert_array_equal(drawn.mask, expected)


@settings(max_examples=40)
@given(scenes, sizes)
def test_max_with_coco_is_pycocotools(
    scene: list[tuple[int, list[list[float]]]], size: tuple[int, int]
) -> None:
    expected = np.zeros(size, dtype=np.uint8)
    for class_index, parts in scene:
        region = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *size)))
        expected = np.maximum(expected, class_index * region)
    instances = [instance(parts, class_index) for class_index, parts in scene]
    drawn = draw(*instances, height=size[0], width=size[1], overlap="max", rasterizer="coco")
    np.testing.assert_array_equal(drawn.mask, expected)


def by_pycocotools(polygon: list[float], height: int, width: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0]


@pytest.mark.parametrize("reach", [1, 1.5, 300])
@pytest.mark.parametrize("digits", [0, 1, 2, 9])
def test_coco_on_larger_images(digits: int, reach: float) -> None:
    """Coordinates of one decimal lie on the edges of pycocotools' roundings, or just beside them."""
    rng = random.Random(digits)
    for height, width in ((123, 77), (1, 300), (300, 1), (64, 257)):
        for points in (3, 4, 9, 16):
            polygon = []
            for _ in range(points):
                polygon += [
                    round(side * (0.5 + reach * rng.uniform(-0.5, 0.5)), digits) for side in (width, height)
                ]
            polygon += polygon[: 2 * (points == 9)]  # closed by its first point once more
            drawn = draw(instance([polygon]), height=height, width=width, rasterizer="coco")
            np.testing.assert_array_equal(drawn.mask, by_pycocotools(polygon, height, width))


def test_coco_of_far_points() -> None:
    """For 1,000 far points pycocotools takes 4 GB; for a few more it writes beyond its memory."""
    rng = random.Random(0)
    polygon = [round(rng.uniform(-1e5, 1e5), 1) for _ in range(1000)]
    drawn = draw(instance([polygon[:20]]), height=40, width=60, rasterizer="coco")
    np.testing.assert_array_equal(drawn.mask, by_pycocotools(polygon[:20], 40, 60))
    with pytest.raises(CocosegError, match="annotation 77: an outline of more than 2,000,000 pixels"):
        draw(instance([polygon]), rasterizer="coco")
    draw(instance([polygon]), rasterizer="pillow")


@pytest.mark.parametrize("kind", ["polygon", "runs"])
def test_small_objects_cost_no_more_in_a_large_image(kind: str) -> None:
    def seconds(side: int) -> float:
        segmentation: Any = [[10, 10, 30, 12, 28, 30, 12, 25]]
        if kind == "runs":
            lengths = [side * 10 + 10, *[10, side - 10] * 9, 10]
            segmentation = {"size": [side, side], "counts": [*lengths, side**2 - sum(lengths)]}
        layers = parse_layers([instance(segmentation)] * 50, side, side, "ignore")
        begin = time.perf_counter()
        paint(layers, MasksConfig(rasterizer="coco"))
        return time.perf_counter() - begin

    assert min(seconds(2048) for _ in range(3)) < 10 * min(seconds(64) for _ in range(3))


boxes = st.tuples(
    st.integers(1, 4),  # class
    st.sampled_from(KINDS),
    st.tuples(st.integers(-2, 7), st.integers(-2, 5), st.integers(1, 8), st.integers(1, 8)).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    ),
)


def boxes_to_draw(drawn: list[tuple[int, str, tuple[int, int, int, int]]]) -> list[Instance]:
    return [
        instance([corners(*box)] if kind == "polygon" else rle(rectangle(*box), kind), class_index)
        for class_index, kind, box in drawn
    ]


@settings(max_examples=40)
@given(st.lists(boxes, max_size=6))
def test_smallest_pixel_by_pixel(drawn: list[tuple[int, str, tuple[int, int, int, int]]]) -> None:
    """Each pixel is that of the smallest object on it; of equal ones, of the higher class."""
    regions = [rectangle(*box) for _, _, box in drawn]
    areas = [
        (box[2] - box[0]) * (box[3] - box[1]) if kind == "polygon" else int(region.sum())
        for (_, kind, box), region in zip(drawn, regions, strict=True)
    ]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for pixel in np.ndindex(HEIGHT, WIDTH):
        claims = [(areas[i], -drawn[i][0]) for i in range(len(drawn)) if regions[i][pixel]]
        expected[pixel] = -min(claims)[1] if claims else 0
    np.testing.assert_array_equal(draw(*boxes_to_draw(drawn), overlap="smallest").mask, expected)


@settings(max_examples=40)
@given(st.lists(boxes, max_size=6))
def test_ignore_pixel_by_pixel(drawn: list[tuple[int, str, tuple[int, int, int, int]]]) -> None:
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for pixel in np.ndindex(HEIGHT, WIDTH):
        classes = {class_index for class_index, _, box in drawn if rectangle(*box)[pixel]}
        expected[pixel] = 255 if len(classes) > 1 else next(iter(classes), 0)
    np.testing.assert_array_equal(draw(*boxes_to_draw(drawn), overlap="ignore").mask, expected)


def test_area_is_that_of_all_parts() -> None:
    """Two squares of area 9 lie beneath a box of area 12."""
    parts = [corners(0, 0, 3, 3), corners(4, 0, 7, 3)]
    assert picture(draw(instance(parts, 2), instance([BOX], 1), overlap="smallest"))[:2] == [
        "22222222",
        "21111122",
    ]


# --- run lengths


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False), st.sampled_from(KINDS[1:]))
def test_any_region_in_runs(height: int, width: int, rng: random.Random, kind: str) -> None:
    """Pixels anywhere in a part of the image: runs that end at borders, and go on in the next column."""
    region = np.zeros((height, width), dtype=bool)
    part = region[rng.randint(0, height - 1) :, rng.randint(0, width - 1) :]
    share = rng.choice([0, 0.2, 0.8, 1])
    part[:] = np.reshape([rng.random() < share for _ in range(part.size)], part.shape)
    drawn = draw(instance(rle(region, kind)), height=height, width=width)
    np.testing.assert_array_equal(drawn.mask, region)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=20), st.booleans())
def test_rle_runs(lengths: list[int], begins_inside: bool) -> None:
    lengths = [0, *lengths] if begins_inside else lengths
    total = sum(lengths)
    compressed = coco_mask.frPyObjects({"size": [total, 1], "counts": lengths}, total, 1)["counts"]
    assert rle_runs(compressed.decode()).tolist() == lengths


@pytest.mark.parametrize("counts", ["", "P", "0P", "/", "p", "\x00", "é", "日本", "oooooooooooooooooooo1"])
def test_rle_runs_of_garbage(counts: str) -> None:
    assert rle_runs(counts).size == 0


# --- what can't be drawn


@pytest.mark.parametrize(
    "segmentation", [None, [], [[]], [[], []], [[1, 1]], [[1, 1, 2, 2]], [[1, 2, 3, 4, 5]]]
)
def test_left_out_and_counted(segmentation: Any) -> None:
    drawn = draw(instance(segmentation), instance([BOX], 2), instance(segmentation))
    assert drawn.left_out == 2
    np.testing.assert_array_equal(drawn.mask, 2 * rectangle(1, 1, 5, 4))


def test_only_the_unusable_part_is_left_out() -> None:
    drawn = draw(instance([[1, 2, 3], BOX, [], [0, 0, 0, 0, 0, 0, 0]]))
    assert drawn.left_out == 1
    np.testing.assert_array_equal(drawn.mask, rectangle(1, 1, 5, 4))


def test_flat_list_of_numbers_is_one_polygon() -> None:
    np.testing.assert_array_equal(draw(instance(BOX)).mask, rectangle(1, 1, 5, 4))


@pytest.mark.parametrize("crowd", ["ignore", "draw"])
def test_crowd_without_segmentation_is_counted(crowd: str) -> None:
    assert draw(instance(None, crowd=True), crowd=crowd).left_out == 1


MALFORMED = {
    "number": 5,
    "text": "polygon",
    "true": True,
    "text in a polygon": [[1, 1, 5, 1, 5, "4"]],
    "null in a polygon": [[1, 1, 5, 1, 5, None]],
    "nested too deep": [[[1, 1, 5, 1, 5, 4]]],
    "nested far too deep": b"[" * 100_000 + b"]" * 100_000,
    "polygon, then a number": [BOX, 3],
    "number, then a polygon": [3, BOX],
    "numbers, then a list": [1, 1, 5, 1, 5, [4]],
    "list among numbers": [1, [1], 5, 1, 5, 4],
    "huge coordinate": [[1, 1, 5, 1, 5, 4e9]],
    "huge negative coordinate": [[1, 1, 5, 1, 5, -4e9]],
    "huge integer": [[1, 1, 5, 1, 5, 10**40]],
    "beyond a float": b"[[1, 1, 5, 1, 5, 1e999]]",
    "not a number": b"[[1, 1, 5, 1, 5, NaN]]",
    "empty object": {},
    "RLE without counts": {"size": [6, 8]},
    "RLE without size": {"counts": [48]},
    "RLE of another size": {"size": [6, 9], "counts": [54]},
    "RLE of the size the wrong way round": {"size": [8, 6], "counts": [48]},
    "RLE of size 1": {"size": [48], "counts": [48]},
    "counts null": {"size": [6, 8], "counts": None},
    "counts of text": {"size": [6, 8], "counts": ["48"]},
    "no runs": {"size": [6, 8], "counts": []},
    "runs too short": {"size": [6, 8], "counts": [10, 37]},
    "runs too long": {"size": [6, 8], "counts": [10, 39]},
    "negative run": {"size": [6, 8], "counts": [50, -2]},
    "huge run": {"size": [6, 8], "counts": [2**64 + 48]},
    "compressed, empty": {"size": [6, 8], "counts": ""},
    "compressed, too short": {"size": [6, 8], "counts": rle(np.ones((6, 7)), "compressed")["counts"]},
    "compressed, too long": {"size": [6, 8], "counts": rle(np.ones((7, 8)), "compressed")["counts"]},
    "compressed, cut in a number": {"size": [6, 8], "counts": "P"},
    "compressed, garbage": {"size": [6, 8], "counts": "~~ nothing ~~"},
    "compressed, not ASCII": {"size": [6, 8], "counts": "é日本"},
    "compressed, NUL": {"size": [6, 8], "counts": "\x00"},
    "compressed, no Unicode": b'{"size": [6, 8], "counts": "\xff"}',
    "compressed, half a surrogate": b'{"size": [6, 8], "counts": "\\ud800"}',
}


@pytest.mark.parametrize("segmentation", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(segmentation: Any) -> None:
    with pytest.raises(CocosegError, match="annotation 77"):
        draw(instance([BOX]), instance(segmentation))


@pytest.mark.parametrize("rasterizer", ["pillow", "coco"])
def test_far_coordinates(rasterizer: str) -> None:
    """A polygon with coordinates up to 100,000 is drawn, and covers the image."""
    far = 90_000.5
    drawn = draw(instance([[-far, -far, far, -far, far, far, -far, far]]), rasterizer=rasterizer)
    assert drawn.mask.all()
