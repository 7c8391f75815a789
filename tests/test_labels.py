import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import IGNORE_COLOR, IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import Category
from cocoseg.preparation.draw_masks import create_segmentation_masks
from cocoseg.preparation.prepare import prepare
from conftest import write_coco

CATEGORIES = [Category(18, "dog"), Category(1, "person"), Category(58, "hot dog"), Category(3, "car")]


def test_ascending_ids() -> None:
    labels = LabelMap.from_categories(CATEGORIES)
    assert labels.names == ["background", "person", "car", "dog", "hot dog"]
    assert labels.index_of == {1: 1, 3: 2, 18: 3, 58: 4}
    assert len(labels) == 5
    assert labels.classes[0].category_id is None


@pytest.mark.parametrize(
    "chosen", [["dog", "car"], [3, 18], ["car", 18], ["car", 3, "dog", "dog"]], ids=lambda chosen: str(chosen)
)
def test_chosen_by_name_or_id(chosen: list[int | str]) -> None:
    labels = LabelMap.from_categories(CATEGORIES, chosen)
    assert labels.index_of == {3: 1, 18: 2}
    assert labels.names == ["background", "car", "dog"]


def test_unknown_names() -> None:
    with pytest.raises(CocosegError, match="no category 'persn'; did you mean 'person'"):
        LabelMap.from_categories(CATEGORIES, ["persn"])
    with pytest.raises(CocosegError, match="no category 'zebra'; known: person, car, dog, hot dog"):
        LabelMap.from_categories(CATEGORIES, ["zebra"])
    with pytest.raises(CocosegError, match="no category 2"):
        LabelMap.from_categories(CATEGORIES, [2])


@pytest.mark.parametrize(
    ("categories", "things", "stuff"),
    [
        (CATEGORIES, [1, 3, 18, 58], None),
        ([Category(1, "cat", isthing=1), Category(5, "sky", isthing=0)], [1], [5]),
        ([Category(5, "sky", isthing=False)], None, [5]),
        ([Category(183, "other"), Category(92, "banner"), Category(100, "cabinet")], [183], [92, 100]),
        ([Category(1, "cat"), Category(92, "banner"), Category(183, "other")], [1, 92, 183], None),
    ],
    ids=["instances", "panoptic", "no things", "stuff", "of someone else"],
)
def test_things_and_stuff(categories, things, stuff):
    for kind, expected in (("things", things), ("stuff", stuff)):
        if expected is None:
            with pytest.raises(CocosegError, match=rf"data\.subset\.categories={kind}: .* file has none"):
                LabelMap.from_categories(categories, kind)
        else:
            assert list(LabelMap.from_categories(categories, kind).index_of) == expected


def test_ambiguous_name() -> None:
    categories = [Category(4, "crane"), Category(9, "crane"), Category(5, "ship")]
    with pytest.raises(CocosegError, match=r"'crane' .*\[4, 9\].*give the id"):
        LabelMap.from_categories(categories, ["crane"])
    assert LabelMap.from_categories(categories, [9]).index_of == {9: 1}


def test_categories_of_another_file_by_name() -> None:
    labels = LabelMap.from_categories(CATEGORIES, grouping={"animal": ["dog", "person"], "car": ["car"]})
    # as predict.py writes them: class indices as ids
    assert labels.ids_by_name([Category(1, "animal"), Category(2, "car")]) == {1: 18, 2: 3}
    assert labels.ids_by_name([]) == {}
    with pytest.raises(CocosegError, match=r"no class is called 'dog'; the classes are animal, car$"):
        labels.ids_by_name([Category(18, "dog")])
    cranes = LabelMap.from_categories([Category(4, "crane"), Category(9, "crane"), Category(5, "ship")])
    assert cranes.ids_by_name([Category(9, "crane"), Category(1, "ship")]) == {9: 9, 1: 5}
    with pytest.raises(CocosegError, match="several classes are called 'crane'"):
        cranes.ids_by_name([Category(1, "crane")])
    with pytest.raises(CocosegError, match="no class is called 'background'"):
        cranes.ids_by_name([Category(0, "background")])


def test_from_1_to_254() -> None:
    with pytest.raises(CocosegError, match=r"data\.subset\.categories"):
        LabelMap.from_categories(CATEGORIES, [])
    many = [Category(i, f"c{i}") for i in range(1000, 1255)]
    labels = LabelMap.from_categories(many[:254])
    assert labels.index_of[1253] == 254  # 255 is for ignored pixels
    assert len({c.color for c in labels.classes}) == 255  # all different
    with pytest.raises(CocosegError, match=r"255 categories, .*254"):
        LabelMap.from_categories(many)
    assert len(LabelMap.from_categories(many, ["c1254"])) == 2


def test_names_as_keys_are_all_there() -> None:
    same = [Category(1, "background"), Category(2, "b"), Category(5, "b"), Category(7, "c")]
    labels = LabelMap.from_categories(same)
    assert labels.unique_names == ["background", "background (id 1)", "b (id 2)", "b (id 5)", "c"]


def test_round_trip_through_json() -> None:
    groups = LabelMap.from_categories(ZOO, grouping={"wheels": ["car", 2], "glass": ["bottle"]})
    content = json.loads(json.dumps(groups.to_dict()))
    assert LabelMap.from_dict(content) == groups
    categories = [(c["category_id"], c["category_ids"]) for c in content["classes"]]
    assert categories == [(None, []), (None, [3, 2]), (44, [44])]
    labels = LabelMap.from_categories(CATEGORIES)
    content = json.loads(json.dumps(labels.to_dict()))
    assert LabelMap.from_dict(content) == labels
    assert content["ignore_index"] == 255
    assert content["classes"][0] == {
        "index": 0,
        "category_id": None,
        "category_ids": [],
        "name": "background",
        "color": [0, 0, 0],
    }
    assert [(c["index"], c["category_id"], c["name"]) for c in content["classes"][1:3]] == [
        (1, 1, "person"),
        (2, 3, "car"),
    ]


def test_difference() -> None:
    labels = LabelMap.from_categories(CATEGORIES)
    assert labels.difference(LabelMap.from_categories(reversed(CATEGORIES))) is None
    assert labels.difference(LabelMap.from_categories(CATEGORIES[:3])) == "4 classes against 3"
    renamed = LabelMap.from_categories([*CATEGORIES[:3], Category(3, "bus")])
    assert labels.difference(renamed) == "class 2 is 'car' (id 3) against 'bus' (id 3)"
    renumbered = LabelMap.from_categories([*CATEGORIES[:3], Category(4, "car")])
    assert labels.difference(renumbered) == "class 2 is 'car' (id 3) against 'car' (id 4)"
    pets = [LabelMap.from_categories(ZOO, grouping={"pet": pet}) for pet in (["cat", "dog"], ["cat"])]
    assert pets[0].difference(pets[1]) == "class 1 is 'pet' (id 17, 18) against 'pet' (id 17)"


# --- classes of several categories

ZOO = [
    Category(18, "dog", "animal"),
    Category(1, "person", "person"),
    Category(44, "bottle", "kitchen"),
    Category(3, "car", "vehicle"),
    Category(17, "cat", "animal"),
    Category(2, "bicycle", "vehicle"),
]


def ids(labels: LabelMap) -> list[tuple[str, tuple[int, ...]]]:
    return [(label.name, label.category_ids) for label in labels.classes[1:]]


def test_supercategories() -> None:
    labels = LabelMap.from_categories(ZOO, grouping="supercategories")
    assert ids(labels) == [("person", (1,)), ("vehicle", (2, 3)), ("animal", (17, 18)), ("kitchen", (44,))]
    assert labels.index_of == {1: 1, 2: 2, 3: 2, 17: 3, 18: 3, 44: 4}
    assert labels.names == ["background", "person", "vehicle", "animal", "kitchen"]
    assert [label.category_id for label in labels.classes] == [None, 1, None, None, 44]
    assert LabelMap.from_categories(reversed(ZOO), grouping="supercategories") == labels


@pytest.mark.parametrize("supercategory", [None, ""])
def test_missing_supercategory(supercategory: str | None) -> None:
    categories = [*ZOO, Category(90, "toothbrush", supercategory)]
    with pytest.raises(CocosegError, match=r"data\.labels=supercategories: category 90 \('toothbrush'\)"):
        LabelMap.from_categories(categories, grouping="supercategories")
    assert len(LabelMap.from_categories(categories, ["dog"], "supercategories")) == 2


def test_groups_keep_their_order() -> None:
    grouping = {"wheels": ["car", 2], "alive": [18, "person", "cat"], "glass": ["bottle"]}
    labels = LabelMap.from_categories(ZOO, grouping=grouping)
    assert ids(labels) == [("wheels", (3, 2)), ("alive", (18, 1, 17)), ("glass", (44,))]
    assert labels.index_of == {3: 1, 2: 1, 18: 2, 1: 2, 17: 2, 44: 3}
    assert len({label.color for label in labels.classes}) == 4
    other = LabelMap.from_categories(ZOO, grouping=dict(reversed(grouping.items())))
    assert other.names == ["background", "glass", "alive", "wheels"]


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        ({"pet": ["cat", "dog"], "feline": ["cat"]}, "data.labels: 'cat' is in 'pet' and in 'feline'"),
        ({"pet": ["cat", "dog"], "feline": [17]}, "data.labels: 17 is in 'pet' and in 'feline'"),
        ({"pet": ["cat", "dogg"]}, "data.labels.pet: no category 'dogg'; did you mean 'dog'?"),
        (
            {"pet": ["zzz"]},
            "data.labels.pet: no category 'zzz'; known: person, bicycle, car, cat, dog, bottle",
        ),
        ({"pet": [4]}, "data.labels.pet: no category 4; known:"),
    ],
    ids=str,
)
def test_bad_groups(grouping: dict[str, list[int | str]], message: str) -> None:
    with pytest.raises(CocosegError) as caught:
        LabelMap.from_categories(ZOO, grouping=grouping)
    assert str(caught.value).startswith(message)


def test_groups_of_what_was_not_chosen() -> None:
    grouping = {"pet": ["cat", "dog"]}
    with pytest.raises(CocosegError, match=r"data\.labels\.pet: no category 'dog'"):
        LabelMap.from_categories(ZOO, ["cat", "car"], grouping)
    assert LabelMap.from_categories(ZOO, ["cat", "car", "dog"], grouping).index_of == {17: 1, 18: 1}


@pytest.mark.parametrize(
    ("grouping", "pixel", "numbers"),
    [
        ("all", "category_id", [1, 2, 3, 17, 18, 44]),
        ("supercategories", "class_index", [1, 2, 3, 4]),
        ({"one": ["person"], "two": ["dog"], "three": ["bottle"]}, "category_id", [1, 18, 44]),
        ({"two": ["dog"], "one": ["person"]}, "class_index", [1, 2]),
        ({"one": ["person"], "two": ["dog", "cat"]}, "class_index", [1, 2]),
        ({"two": ["dog"]}, "category_id", [18]),
    ],
    ids=str,
)
@pytest.mark.parametrize("encoding", ["palette", "uint16", "x100"])
def test_what_masks_hold(
    tmp_path: Path, grouping: Any, pixel: str, numbers: list[int], encoding: str
) -> None:
    masks = MaskEncoding(encoding, LabelMap.from_categories(ZOO, grouping=grouping))
    assert masks.pixel == pixel
    visible = range(len(numbers) + 1)
    assert masks.file_name("a/b.jpg", visible) == f"a/b_mask_cats_{'_'.join(map(str, numbers))}.png"
    mask = np.array([[*visible, 255]], dtype=np.uint8)
    masks.write(mask, tmp_path / "mask.png")
    with PIL.Image.open(tmp_path / "mask.png") as image:
        found = np.asarray(image)[0].tolist()
    scale = 100 if encoding == "x100" else 1
    assert found == [0, *(scale * n for n in numbers), 255 if encoding == "palette" else 65535]
    masks.save(tmp_path)
    np.testing.assert_array_equal(MaskEncoding.load(tmp_path).read(tmp_path / "mask.png"), mask)


# --- from the annotation file to the masks


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """An image of 8 x 6 pixels with a cat (2), a dog (5) and, over both, an eel (9)."""
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    return write_coco(
        tmp_path / "c.json",
        annotations=[
            {"id": 1, "image_id": 1, "category_id": 9, "segmentation": box(1, 1, 6, 2)},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": box(0, 0, 2, 5)},
            {"id": 3, "image_id": 1, "category_id": 5, "segmentation": box(5, 0, 7, 5)},
        ],
        categories=[{"id": i, "name": name} for i, name in ((2, "cat"), (5, "dog"), (9, "eel"))],
    )


def drawn(file: Path, **rules: Any) -> tuple[str, list[str]]:
    """Name and pixels of the mask; ignored pixels are #."""
    folder = file.parent / "masks"
    (record,) = create_segmentation_masks(file.parent / "images", file, folder, workers=1, **rules)
    with PIL.Image.open(folder / record.mask) as image:
        rows = np.asarray(image).tolist()
    return record.mask, ["".join({0: ".", 255: "#"}.get(v, str(v)) for v in row) for row in rows]


def test_others_are_background(pets: Path) -> None:
    grouping = {"furry": ["dog", "cat"]}
    assert drawn(pets, labels=grouping) == ("a_mask_cats_1.png", 6 * ["111..111"])


@pytest.mark.parametrize("overlap", ["max", "smallest", "ignore"])
def test_others_are_ignored_beneath(pets: Path, overlap: str) -> None:
    rows = ["111..111", "111##111", "111##111", "111..111", "111..111", "111..111"]
    found = drawn(pets, labels={"furry": ["dog", "cat"]}, other="ignore", overlap=overlap)
    assert found == ("a_mask_cats_1.png", rows)


def test_others_that_were_not_chosen_are_ignored(pets: Path) -> None:
    name, rows = drawn(pets, categories=["cat"], other="ignore")
    assert name == "a_mask_cats_2.png"
    assert rows == ["222..###", "222#####", "222#####", "222..###", "222..###", "222..###"]


def test_the_order_of_groups_is_that_of_the_rule_max(pets: Path) -> None:
    found = drawn(pets, labels={"fish": ["eel"], "furry": ["dog", "cat"]})
    rows = ["222..222", "22211222", "22211222", "222..222", "222..222", "222..222"]
    assert found == ("a_mask_cats_1_2.png", rows)


def test_one_to_one_groups_hold_category_ids(pets: Path) -> None:
    found = drawn(pets, labels={"furry": ["cat"], "fish": ["eel"]}, other="ignore")
    rows = ["222..###", "2999999#", "2999999#", "222..###", "222..###", "222..###"]
    assert found == ("a_mask_cats_2_9.png", rows)


def test_groups_in_another_order_are_prepared_anew(pets: Path, tmp_path: Path) -> None:
    data = DataConfig(
        images=str(tmp_path / "images"),
        annotations=str(pets),
        prepared_dir=str(tmp_path / "prepared"),
        subset=SubsetConfig(size=None),
    )
    config = Config(data=data, prepare=PrepareConfig(workers=1))
    for names in (["fish", "furry"], ["furry", "fish"]):
        groups = {"fish": ["eel"], "furry": ["dog", "cat"]}
        data.labels = {name: groups[name] for name in names}
        prepare(config)
        assert MaskEncoding.load(tmp_path / "prepared").labels.names == ["background", *names]


def test_a_palette_holds_the_colors_of_all_values() -> None:
    labels = LabelMap.from_categories(CATEGORIES)
    palette = labels.palette()
    assert (palette.shape, str(palette.dtype)) == ((256, 3), "uint8")
    assert [tuple(color) for color in palette[: len(labels)].tolist()] == [c.color for c in labels.classes]
    assert tuple(palette[IGNORE_INDEX].tolist()) == IGNORE_COLOR
    assert not palette[len(labels) : IGNORE_INDEX].any()


def test_a_file_that_lists_background_alone_is_refused():
    content = LabelMap.from_categories([Category(1, "cat")]).to_dict()
    content["classes"].pop()
    with pytest.raises(CocosegError, match="no labels of this program"):
        LabelMap.from_dict(content)


def test_control_characters_do_not_reach_a_terminal():
    labels = LabelMap.from_categories([Category(1, "red\x1b[31m\n"), Category(2, "naïve café")])
    assert labels.names == ["background", "red [31m", "naïve café"]
    assert Category(1, "a\u202eb", "\x9bc").supercategory == "c"
    with pytest.raises(CocosegError, match=r"known: a b, \[2Jc$"):
        LabelMap.from_categories([Category(1, "a\nb"), Category(2, "\x1b[2Jc")], chosen=["zzz"])
    content = labels.to_dict()
    content["classes"][1]["name"] = "a\u2028b"
    assert LabelMap.from_dict(content).names[1] == "a b"
