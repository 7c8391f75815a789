"""Any annotation file at all: it is drawn as the rules say, or refused in one line that names it."""

import copy
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.errors import CocosegError
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.draw_masks import create_segmentation_masks

IGNORED = 255


# --- the rules once more, slow and simple


def painted(content: dict[str, Any], image: dict[str, Any]) -> np.ndarray:
    """The class index of each pixel: a canvas per annotation, the highest class wins, crowds lie beneath."""
    shape = int(image["height"]), int(image["width"])
    index_of = {identity: index for index, identity in enumerate(category_ids(content), start=1)}
    objects, crowds = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for annotation in content["annotations"]:
        if annotation["image_id"] == image["id"]:
            region = covered(annotation.get("segmentation"), *shape)
            if annotation.get("iscrowd", 0):
                crowds |= region
            else:
                objects = np.maximum(objects, region * np.uint8(index_of[annotation["category_id"]]))
    objects[crowds & (objects == 0)] = IGNORED
    return objects


def category_ids(content: dict[str, Any]) -> list[int]:
    return sorted(category["id"] for category in content["categories"])


def covered(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        return filled(decompressed(counts) if isinstance(counts, str) else counts, height, width)
    polygons = segmentation or []
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    region = np.zeros((height, width), bool)
    for polygon in polygons:
        if len(polygon) >= 6 and len(polygon) % 2 == 0:
            canvas = PIL.Image.new("1", (width, height))
            PIL.ImageDraw.Draw(canvas).polygon(polygon, fill=1)
            region |= np.array(canvas)
    return region


def filled(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Runs go down the columns, background first."""
    pixels = [number % 2 == 1 for number, run in enumerate(runs) for _ in range(int(run))]
    return np.array([[pixels[x * height + y] for x in range(width)] for y in range(height)])


def decompressed(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def compressed(runs: Sequence[int]) -> str:
    text = ""
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr((code | 32 * more) + 48)
    return text


def in_file(content: dict[str, Any]) -> list[int]:
    """The pixel values of classes in a mask file: category ids, or class indices where an id does not fit."""
    ids = category_ids(content)
    return [0, *(ids if ids[0] >= 1 and ids[-1] <= 254 else range(1, len(ids) + 1))]


def assert_painted(content: dict[str, Any], image: dict[str, Any], mask_file: Path) -> None:
    values = np.zeros(256, np.uint8)
    values[: len(in_file(content))] = in_file(content)
    values[IGNORED] = IGNORED
    with PIL.Image.open(mask_file) as mask:
        np.testing.assert_array_equal(np.asarray(mask), values[painted(content, image)])


# --- files


class Case(NamedTuple):
    sizes: list[tuple[str, int, int]]  # of the images that are there: name, width, height
    file: bytes


coordinates = st.one_of(st.integers(-3, 15), st.floats(-3, 15).map(lambda value: round(value, 2)))
ids = st.one_of(st.integers(0, 9), st.integers(1000, 9000), st.integers(2**31, 2**63 - 1))


def polygons() -> st.SearchStrategy[list[float]]:
    return st.lists(coordinates, min_size=6, max_size=12).map(lambda values: values[: len(values) // 2 * 2])


@st.composite
def runs(draw: st.DrawFn, pixels: int) -> list[int]:
    cuts = sorted(draw(st.lists(st.integers(0, pixels), max_size=6)))
    return [after - before for before, after in itertools.pairwise([0, *cuts, pixels])]


@st.composite
def segmentations(draw: st.DrawFn, height: int, width: int) -> Any:
    kind = draw(st.sampled_from(["polygons", "polygons", "flat", "odd", "runs", "compressed", "nothing"]))
    if kind == "polygons":
        return draw(st.lists(polygons(), min_size=1, max_size=3))
    if kind == "flat":
        return draw(polygons())
    if kind == "odd":
        return [*draw(st.lists(polygons(), max_size=1)), draw(st.lists(coordinates, max_size=7))]
    if kind == "nothing":
        return draw(st.sampled_from([None, []]))
    counts = draw(runs(height * width))
    return {"size": [height, width], "counts": counts if kind == "runs" else compressed(counts)}


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """A well-formed file."""
    image_ids = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    sizes = [(draw(st.integers(1, 12)), draw(st.integers(1, 12))) for _ in image_ids]
    stems = draw(st.permutations(["a", "b.c", "sub/ü"]))
    images = [
        {"id": identity, "file_name": f"{stem}.png", "width": width, "height": height}
        for identity, stem, (width, height) in zip(image_ids, stems, sizes, strict=False)
    ]
    classes = draw(st.lists(ids, min_size=1, max_size=4, unique=True))
    annotations = []
    for number in range(draw(st.integers(0, 5))):
        image = draw(st.sampled_from(images))
        annotation = {
            "id": number,
            "image_id": image["id"],
            "category_id": draw(st.sampled_from(classes)),
            "segmentation": draw(segmentations(image["height"], image["width"])),
        }
        annotation |= draw(st.sampled_from([{}, {"iscrowd": 0}, {"iscrowd": 1}, {"area": 3.5, "extra": {}}]))
        annotations.append(annotation)
    categories = [{"id": identity, "name": f"n{identity}"} for identity in classes]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": categories}


def case(content: dict[str, Any], file: bytes | None = None) -> Case:
    sizes = [(image["file_name"], image["width"], image["height"]) for image in content["images"]]
    return Case(sizes, json.dumps(content).encode() if file is None else file)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a file."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


NAMES = (
    *("", ".", " ", "\n", "sub", "sub/", "a", "b.png", "a.png/", "./a.png", "../a.png", "/etc/passwd"),
    *("C:a.png", "a\\b.png", "a\0.png", "a\nb.png", "b\r.png", "c\u2028.png", "\ud800.png", "a" * 300, "?*"),
)
COUNTS = (
    "",
    "0",
    "1",
    "o",
    "PPP",
    "~~~",
    "0`",
    "ÿ",
    "1" * 90,
    "o" * 9,
    "\n",
    "\ud800",
    [],
    [-1, 2],
    [1.5],
    ["1"],
)
NUMBERS = (
    0,
    1,
    3,
    -1,
    0.5,
    3.0,
    1e5,
    1e308,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**30,
    *map(float, ("nan", "inf")),
)
OTHERS = (None, True, False, "1", {}, [[]], [1, 2], [None], {"size": [1, 1]}, {"size": [1, 1], "counts": [1]})
VALUES = st.sampled_from([*NUMBERS, *OTHERS, nested(3), nested(400)])
VALUES_OF = {
    "file_name": st.sampled_from(NAMES),
    "counts": st.sampled_from(COUNTS),
    "category_id": ids,
    "image_id": ids,
    "id": st.one_of(ids, st.sampled_from(NUMBERS)),
    "size": st.lists(st.integers(-1, 12), max_size=3),
}


@st.composite
def mutated(draw: st.DrawFn) -> Case:
    """A well-formed file with one or two changes."""
    original = draw(contents())
    content: Any = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 2))):
        keys = {str(place[-1:]): place[-1] for place in places(content) if place}
        key = draw(st.sampled_from(list(keys.values()) or [None]))
        place = draw(st.sampled_from([place for place in places(content) if place[-1:] in ((key,), ())]))
        how = draw(st.sampled_from(["replace", "replace", "replace", "delete", "double"]))
        content = changed(content, place, how, draw(st.one_of(VALUES, VALUES_OF.get(key, VALUES))))
    return case(original, json.dumps(content).encode())


def changed(content: Any, place: tuple[Any, ...], how: str, value: Any) -> Any:
    if not place:
        return value if how == "replace" else content
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    if how == "replace":
        parent[place[-1]] = value
    elif how == "delete":
        del parent[place[-1]]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[place[-1]]))
    return content


@st.composite
def garbled(draw: st.DrawFn) -> Case:
    """A well-formed file with damaged bytes."""
    original = draw(contents())
    file = json.dumps(original, ensure_ascii=draw(st.booleans())).encode()
    at = draw(st.integers(0, len(file)))
    bad = draw(
        st.sampled_from([b"\xff", b"\xc3", b"\0", b"\xed\xa0\x80", b"NaN", *(b'" } ] , - \\'.split())])
    )
    deep = draw(st.sampled_from([10, 5000]))
    changes = [
        file[:at],
        b"",
        file[:at] + bad + file[at:],
        file[:at] + bad + file[at + 1 :],
        file + bad,
        b"\xef\xbb\xbf" + file,
        file.decode().encode("utf-16"),
        file[:-1] + b', "deep": ' + b"[" * deep + b"]" * deep + b"}",
        file.replace(b'"segmentation": ', b'"segmentation": ' + b"[" * deep, 1),
        file.replace(b'"segmentation": [', b'"segmentation": ' + b"[" * deep + b"]" * deep + b', "x": [', 1),
        file.replace(b'"id": ', b'"id": ' + b"9" * deep, 1),
        file.replace(b'"width": ', b'"width": 1e400, "w": ', 1),
        file.replace(b'"images"', b'"images": [], "images"', 1),
        b"[" + file + b"]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b"7",
    ]
    return case(original, draw(st.sampled_from(changes)))


# --- what is asserted


def outcome(tried: Case) -> str:
    """`drawn`, every mask as it should be, or `refused`, in one line that names the file or the images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image_dir, file = folder / "images", folder / "instances.json"
        for image_name, width, height in tried.sizes:
            (image_dir / image_name).parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("L", (width, height)).save(image_dir / image_name)
        file.write_bytes(tried.file)
        try:
            records = create_segmentation_masks(image_dir, file, folder / "masks", workers=1)
        except CocosegError as error:
            assert_one_line(str(error), file, image_dir)
            return "refused"
        # Fields that the program does not use may hold anything. A subset of the file can still be written.
        coco.read(file).write_subset([], folder / "subset.json")
        content = json.loads(tried.file.decode("utf-8-sig", errors="replace"))
        assert [record.image for record in records] == [image["file_name"] for image in content["images"]]
        for record, image in zip(records, content["images"], strict=True):
            assert_painted(content, image, folder / "masks" / record.mask)
        return "drawn"


def assert_one_line(message: str, *names: Path) -> None:
    assert not {"\n", "\r"} & set(message), repr(message)
    assert any(str(name) in message for name in names), message


@settings(max_examples=25)
@given(contents().map(case))
def test_well_formed(tried: Case) -> None:
    assert outcome(tried) == "drawn"


def test_mutated() -> None:
    outcomes: Counter[str] = Counter()

    @settings(max_examples=80)
    @given(mutated())
    def collect(tried: Case) -> None:
        outcomes[outcome(tried)] += 1

    collect()
    assert min(outcomes["drawn"], outcomes["refused"]) > 10


@settings(max_examples=80)
@given(garbled())
def test_garbled(tried: Case) -> None:
    outcome(tried)


def one_square(**of_image: Any) -> dict[str, Any]:
    square = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
    image = {"id": 1, "file_name": "a.png", "width": 5, "height": 4, **of_image}
    return {"images": [image], "annotations": [square], "categories": [{"id": 2, "name": "cat"}]}


@pytest.mark.parametrize("bad", [b"\xff", b"NaN", b"\xef\xbb\xbf"], ids=repr)
def test_bytes_inserted_anywhere(bad: bytes) -> None:
    content = {**one_square(), "info": {"by": "me"}}
    file = json.dumps(content, separators=(",", ":")).encode()
    wrong = []
    for at in range(len(file) + 1):
        try:
            outcome(case(content, file[:at] + bad + file[at:]))
        except (AssertionError, ValueError) as error:
            wrong.append((at, repr(error)))
    assert wrong == []


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_odd_file_name(name: str) -> None:
    said = outcome(case(one_square(), json.dumps(one_square(file_name=name)).encode()))
    assert said == ("drawn" if Path(name) == Path("a.png") else "refused")


@pytest.mark.parametrize("name", ["name", "supercategory"])
@pytest.mark.parametrize(
    "text", ["", "\n", "a\nb", "\ud800", "\0", "名前", "x" * 3000], ids=lambda text: repr(text[:9])
)
def test_odd_category_name(name: str, text: str) -> None:
    content = one_square()
    content["categories"][0][name] = text
    assert outcome(case(content)) == ("refused" if text == "\ud800" else "drawn")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_encodings(encoding: str) -> None:
    content = one_square(extra="é")
    said = outcome(case(content, json.dumps(content, ensure_ascii=False).encode(encoding)))
    assert said == ("drawn" if encoding.startswith("utf-8") else "refused")
