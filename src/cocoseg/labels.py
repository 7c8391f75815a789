"""The label map: category id <-> class index, names, colours, ignore index."""

import colorsys
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from cocoseg.coco import Category
from cocoseg.errors import CocosegError

IGNORE_INDEX = 255
MAX_CLASSES = 254  # class indices 1..254: 0 is background, 255 is ignored


@dataclass(frozen=True)
class LabelClass:
    category_id: int | None  # None: background
    name: str
    color: tuple[int, int, int]  # RGB, 0..255


@dataclass(frozen=True)
class LabelMap:
    """The classes in the order of their index: `classes[0]` is background, then ascending category id."""

    classes: tuple[LabelClass, ...]

    @classmethod
    def from_categories(
        cls, categories: Iterable[Category], chosen: Sequence[int | str] | None = None
    ) -> Self:
        """Number the categories, or only those `chosen` by id or name.

        Raises:
            CocosegError: a chosen category is unknown, or there are more than 254.
        """
        categories = sorted(categories, key=lambda category: category.id)
        if chosen is not None:
            ids = {_find(categories, name) for name in chosen}
            categories = [category for category in categories if category.id in ids]
        if not categories:
            raise CocosegError("no category is left: data.subset.categories is empty")
        if len(categories) > MAX_CLASSES:
            raise CocosegError(
                f"{len(categories)} categories, but a mask has room for {MAX_CLASSES}: "
                "choose some with data.subset.categories"
            )
        classes = [LabelClass(None, "background", (0, 0, 0))]
        for index, category in enumerate(categories, start=1):
            classes.append(LabelClass(category.id, category.name, _color(index)))
        return cls(tuple(classes))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(
            tuple(LabelClass(c["category_id"], c["name"], tuple(c["color"])) for c in content["classes"])
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON and for model files."""
        return {
            "ignore_index": IGNORE_INDEX,
            "classes": [
                {"index": index, "category_id": c.category_id, "name": c.name, "color": list(c.color)}
                for index, c in enumerate(self.classes)
            ],
        }

    def __len__(self) -> int:
        """Number of classes with background: the channels of the logits."""
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def index_of(self) -> dict[int, int]:
        """Category id -> class index."""
        return {c.category_id: index for index, c in enumerate(self.classes) if c.category_id is not None}

    def difference(self, other: "LabelMap") -> str | None:
        """The first difference in ids or names, in words, or None where both mean the same."""
        if len(self) != len(other):
            return f"{len(self) - 1} categories against {len(other) - 1}"
        for index, (ours, theirs) in enumerate(zip(self.classes, other.classes, strict=True)):
            if (ours.category_id, ours.name) != (theirs.category_id, theirs.name):
                return (
                    f"class {index} is {ours.name!r} (category {ours.category_id}) "
                    f"against {theirs.name!r} (category {theirs.category_id})"
                )
        return None


def _find(categories: Sequence[Category], wanted: int | str) -> int:
    matches = [c.id for c in categories if wanted in (c.id, c.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise CocosegError(
            f"data.subset.categories: {wanted!r} is the name of categories {matches}; give the id"
        )
    names = [c.name for c in categories]
    close = difflib.get_close_matches(str(wanted), names, n=1)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"known: {', '.join(names[:10])}{', …' * (len(names) > 10)}"
    )
    raise CocosegError(f"data.subset.categories: no category {wanted!r}; {hint}")


def _color(index: int) -> tuple[int, int, int]:
    """A bright colour per index: hues a golden angle apart stay distinct however many there are."""
    hue = (0.02 + index * 0.6180339887) % 1.0
    saturation = (0.85, 0.6, 1.0)[index % 3]
    value = (1.0, 0.75)[index // 3 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)
