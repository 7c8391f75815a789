"""The label map: category id <-> class index, names, colors, ignore index."""

import colorsys
import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np

from cocoseg.errors import CocosegError, printable

IGNORE_INDEX = 255
IGNORE_COLOR = (224, 224, 192)  # PASCAL VOC's color for void
OTHER = 183  # category that stands for all things in a COCO stuff file
MAX_CLASSES = 254  # class indices 1..254: 0 is background, 255 is ignored

Level = Annotated[int, msgspec.Meta(ge=0, le=255)]  # red, green or blue


def _make_printable(owner: msgspec.Struct, *fields: str) -> None:
    for field in fields:
        text = getattr(owner, field)
        if text is not None and (shown := printable(text)) != text:
            msgspec.structs.force_setattr(owner, field, shown.strip())


class Category(msgspec.Struct, frozen=True, gc=False):
    """A category of an annotation file."""

    id: int
    name: str
    supercategory: str | None = None
    isthing: int | bool | None = None

    def __post_init__(self) -> None:
        _make_printable(self, "name", "supercategory")


class LabelClass(msgspec.Struct, frozen=True):
    """A class that the network predicts.

    Attributes:
        category_ids: categories of the annotation file that it stands for; none for background.
        name: name of the category, or of the group of categories, made printable.
        color: RGB.
    """

    category_ids: tuple[int, ...]
    name: str
    color: tuple[Level, Level, Level]

    def __post_init__(self) -> None:
        _make_printable(self, "name")

    @property
    def category_id(self) -> int | None:
        """The one category; None for background and where there are several."""
        return self.category_ids[0] if len(self.category_ids) == 1 else None

    @property
    def ids(self) -> str:
        """The category ids as text, as in `17, 18`."""
        return ", ".join(map(str, self.category_ids))


_Classes = Annotated[tuple[LabelClass, ...], msgspec.Meta(min_length=2, max_length=MAX_CLASSES + 1)]

Kind = Literal["things", "stuff"]
Grouping = Literal["all", "supercategories"] | Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class LabelMap:
    """The classes by index: `classes[0]` is background, then ascending category id, or groups as given."""

    classes: _Classes

    @classmethod
    def from_categories(
        cls,
        categories: Iterable[Category],
        chosen: Sequence[int | str] | Kind | None = None,
        grouping: Grouping = "all",
    ) -> Self:
        """Make a class of each category, or of each group of categories, and number them.

        Args:
            categories: of the annotation file.
            chosen: names or ids of those to use, `things` or `stuff`; None for all.
            grouping: `all` makes a class of each, `supercategories` of each supercategory, in the order of
                its lowest id, and a mapping of each of its keys, from the names or ids listed there.

        Raises:
            CocosegError: a category is unknown, in two groups or without supercategory, or there are more
                than 254 classes.
        """
        categories = sorted(categories, key=lambda category: category.id)
        if chosen in ("things", "stuff"):
            categories = _of_kind(categories, str(chosen))
        elif chosen is not None:
            ids = {_find(categories, name, "data.subset.categories") for name in chosen}
            categories = [category for category in categories if category.id in ids]
        groups = _groups(categories, grouping)
        if not groups:
            raise CocosegError("no category is left: data.subset.categories is empty")
        if len(groups) > MAX_CLASSES:
            raise CocosegError(
                f"{len(groups)} categories, but a mask has room for {MAX_CLASSES}: "
                "choose some with data.subset.categories, or merge some with data.labels"
            )
        numbered = enumerate(groups, start=1)
        classes = (LabelClass(tuple(ids), name, _color(index)) for index, (name, ids) in numbered)
        return cls((LabelClass((), "background", (0, 0, 0)), *classes))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            CocosegError: values are missing or of other types.
        """
        try:
            return cls(msgspec.convert(content["classes"], _Classes))
        except (msgspec.ValidationError, KeyError, TypeError) as error:
            raise CocosegError(f"no labels of this program ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON and for model files."""
        return {
            "ignore_index": IGNORE_INDEX,
            "classes": [
                {"index": index, "category_id": label.category_id, **msgspec.to_builtins(label)}
                for index, label in enumerate(self.classes)
            ],
        }

    def __len__(self) -> int:
        """Number of classes with background: the channels of the logits."""
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def unique_names(self) -> list[str]:
        """Names that differ: where several classes share one, their category ids follow it."""
        count = Counter(self.names)
        return [
            f"{label.name} (id {label.ids})" if count[label.name] > 1 and label.category_ids else label.name
            for label in self.classes
        ]

    @property
    def index_of(self) -> dict[int, int]:
        """Category id -> class index."""
        return {category: index for index, c in enumerate(self.classes) for category in c.category_ids}

    def ids_by_name(self, categories: Iterable[Category]) -> dict[int, int]:
        """Map the category ids of another file to those of the classes with the same names.

        Raises:
            CocosegError: a category has the name of no class, or of several, none of which has its id.
        """
        ids: dict[int, int] = {}
        for category in categories:
            named = [label.category_ids for label in self.classes[1:] if label.name == category.name]
            same = [known for known in named if category.id in known] or named
            if len(same) != 1:
                fault = "several classes are" if named else "no class is"
                known = ", ".join(self.names[1:])
                raise CocosegError(f"{fault} called {category.name!r}; the classes are {known:.200}")
            ids[category.id] = same[0][0]
        return ids

    def palette(self) -> np.ndarray:
        """Colors of all values of a mask of class indices, the ignore index too: (256, 3) uint8 RGB."""
        colors = np.zeros((256, 3), dtype=np.uint8)
        colors[: len(self)] = [c.color for c in self.classes]
        colors[IGNORE_INDEX] = IGNORE_COLOR
        return colors

    def difference(self, other: "LabelMap") -> str | None:
        """The first difference in ids or names, in words, or None where both mean the same."""
        if len(self) != len(other):
            return f"{len(self) - 1} classes against {len(other) - 1}"
        for index, (ours, theirs) in enumerate(zip(self.classes, other.classes, strict=True)):
            if (ours.category_ids, ours.name) != (theirs.category_ids, theirs.name):
                named = (f"{label.name!r} (id {label.ids})" for label in (ours, theirs))
                return f"class {index} is {' against '.join(named)}"
        return None


def is_stuff_file(ids: Collection[int]) -> bool:
    """Tell whether categories of these ids are those of a COCO stuff file, 92 to 183."""
    return {92, OTHER} <= set(ids) and min(ids) == 92


def _of_kind(categories: Sequence[Category], kind: str) -> list[Category]:
    """Categories of things, or of stuff. An instances file has only things; in a stuff file the id tells."""
    things = [category for category in categories if category.isthing in (None, 1)]
    if is_stuff_file([category.id for category in categories]):
        things = [category for category in categories if category.id == OTHER]
    if found := things if kind == "things" else [c for c in categories if c not in things]:
        return found
    raise CocosegError(
        f"data.subset.categories={kind}: the annotation file has none; COCO's panoptic files have things and "
        "stuff, its instances files things, and its stuff files stuff"
    )


def _groups(categories: Sequence[Category], grouping: Grouping) -> list[tuple[str, list[int]]]:
    """Name and category ids of each class."""
    if grouping == "all":
        return [(category.name, [category.id]) for category in categories]
    groups: dict[str, list[int]] = {}
    if grouping == "supercategories":
        for category in categories:
            if not category.supercategory:
                raise CocosegError(
                    f"data.labels=supercategories: category {category.id} ({category.name!r}) has none"
                )
            groups.setdefault(category.supercategory, []).append(category.id)
        return list(groups.items())
    group_of: dict[int, str] = {}
    for name, members in grouping.items():
        for member in members:
            found = _find(categories, member, f"data.labels.{name}")
            if found in group_of:
                raise CocosegError(f"data.labels: {member!r} is in {group_of[found]!r} and in {name!r}")
            group_of[found] = name
            groups.setdefault(name, []).append(found)
    return list(groups.items())


def _find(categories: Sequence[Category], wanted: int | str, key: str) -> int:
    matches = [c.id for c in categories if wanted in (c.id, c.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise CocosegError(f"{key}: {wanted!r} is the name of categories {matches}; give the id")
    names = [c.name for c in categories]
    close = difflib.get_close_matches(str(wanted), names, n=1)
    known = ", ".join([*names[:10], *["…"] * (len(names) > 10)])
    hint = f"did you mean {close[0]!r}?" if close else f"known: {known}"
    raise CocosegError(f"{key}: no category {wanted!r}; {hint}")


def _color(index: int) -> tuple[int, int, int]:
    """A bright color per index: hues a golden angle apart stay distinct however many there are."""
    hue = (0.02 + index * 0.6180339887) % 1.0
    saturation = (0.85, 0.6, 1.0)[index % 3]
    value = (1.0, 0.75)[index // 3 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
