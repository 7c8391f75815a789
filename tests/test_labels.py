import json

import pytest

from cocoseg.coco import Category
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap

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


def test_ambiguous_name() -> None:
    categories = [Category(4, "crane"), Category(9, "crane"), Category(5, "ship")]
    with pytest.raises(CocosegError, match=r"'crane' .*\[4, 9\].*give the id"):
        LabelMap.from_categories(categories, ["crane"])
    assert LabelMap.from_categories(categories, [9]).index_of == {9: 1}


def test_none_chosen() -> None:
    with pytest.raises(CocosegError, match=r"data\.subset\.categories"):
        LabelMap.from_categories(CATEGORIES, [])


def test_at_most_254() -> None:
    many = [Category(i, f"c{i}") for i in range(1000, 1255)]
    labels = LabelMap.from_categories(many[:254])
    assert labels.index_of[1253] == 254  # 255 is for ignored pixels
    assert len({c.color for c in labels.classes}) == 255  # told apart by their colours
    with pytest.raises(CocosegError, match=r"255 categories, .*254"):
        LabelMap.from_categories(many)
    assert len(LabelMap.from_categories(many, ["c1254"])) == 2


def test_round_trip_through_json() -> None:
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
    assert labels.difference(renamed) == "class 2 is 'car' (category 3) against 'bus' (category 3)"
    renumbered = LabelMap.from_categories([*CATEGORIES[:3], Category(4, "car")])
    assert labels.difference(renumbered) == "class 2 is 'car' (category 3) against 'car' (category 4)"
