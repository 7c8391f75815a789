"""`data.classes`: the classes of mask images, and the pixel value or color of each.

| content                                | value of a pixel of the class                            |
|----------------------------------------|----------------------------------------------------------|
| names                                  | 0, 1, 2, … in their order                                |
| entries `{name, id}`                   | the id: the number of a gray or palette pixel            |
| entries `{name, color: [r, g, b]}`     | the color of an RGB pixel, or of its palette entry       |
| lines of a file, see `_LINES`          | the color or the number                                  |

A class named background (or _background_, as in LabelMe) is class 0. So are value 0 and black, unless they
belong to another class.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import yaml

from cocoseg.errors import CocosegError
from cocoseg.files import read_bytes, read_json, read_yaml
from cocoseg.labels import Category, Level
from cocoseg.mask_images.values import COLOR, color_value, show_value

BACKGROUND = "background"
_SIZE_LIMIT = 2**20  # bytes of a file of classes
_RGB = r"(?P<color>\d+[ ,\t]+\d+[ ,\t]+\d+)"
_LINES = {  # forms of lines that hold more than a name
    "name:red,green,blue": re.compile(rf"(?P<name>.+?)[:,]\s*{_RGB}(:.*)?"),  # CVAT; class_dict.csv on Kaggle
    "red green blue name": re.compile(rf"{_RGB}[ ,\t]+(?P<name>.*\D.*)"),  # CamVid
    "number,name": re.compile(r"(?P<id>\d+)\s*[,;:\t]\s*(?P<name>.+)"),  # Roboflow's _classes.csv
}


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    id: Annotated[int, msgspec.Meta(ge=0, le=65535)] | None = None
    color: tuple[Level, Level, Level] | None = None


class MaskClasses(NamedTuple):
    """The classes of mask images; `category_of` maps values, see values.py, to ids, background to None."""

    categories: list[Category]
    category_of: dict[int, int | None]


def read_classes(given: str | Sequence[Any]) -> MaskClasses:
    """Read `data.classes`, a list or the path of a file.

    Raises:
        CocosegError: it can't be read, or has none of the forms listed above.
    """
    where = f"data.classes: {given}" if isinstance(given, str) else "data.classes"
    try:
        listed = _read(Path(given)) if isinstance(given, str) else given
        named = [index for index, item in enumerate(listed) if not isinstance(item, Mapping)]
        if named and len(named) < len(listed):
            raise ValueError(f"names and entries are mixed; entry {named[0]} is {listed[named[0]]!r}")
        if named:  # YAML reads the name 7 as a number
            listed = [{"name": str(name), "id": index} for index, name in enumerate(listed)]
        entries = [_entry(item, index) for index, item in enumerate(listed)]
        if not entries:
            raise ValueError("no class in it")
        return _numbered(entries)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise CocosegError(f"{where}: {reason}") from error


def found_classes(values: Iterable[int]) -> MaskClasses:
    """Make a class of every number but 0, which is background; colors need names."""
    categories = [Category(id=value, name=str(value)) for value in sorted(values) if 0 < value < COLOR]
    return MaskClasses(categories, {one.id: one.id for one in categories})


def _read(path: Path) -> Sequence[Any]:
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        content = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
        if not isinstance(content, list):
            raise ValueError("not a list of names, or of {name, id} or {name, color} entries")
        return content
    content = read_bytes(path)
    if len(content) > _SIZE_LIMIT:
        raise ValueError(f"more than {_SIZE_LIMIT} bytes")
    lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for form, pattern in _LINES.items():
        found = [pattern.fullmatch(line) for line in lines]
        if lines and path.suffix.lower() == ".csv":
            found = found[not found[0] :]  # the first line may hold the names of the columns
        if None in found and any(found):
            line = lines[-len(found) :][found.index(None)]
            raise ValueError(f"the line {line!r} is not like the others, {form}")
        if any(found):
            return [_of_line(match.groupdict()) for match in found if match]
    return lines


def _of_line(parts: Mapping[str, str]) -> dict[str, Any]:
    """Make an entry of the parts of a line."""
    if "id" in parts:
        return {"name": parts["name"], "id": int(parts["id"])}
    return {"name": parts["name"], "color": list(map(int, re.findall(r"\d+", parts["color"])))}


def _entry(item: Mapping[str, Any], index: int) -> _Entry:
    try:
        entry = msgspec.convert({**item, "name": str(item["name"])} if "name" in item else item, _Entry)
    except msgspec.ValidationError as error:
        raise ValueError(f"entry {index}: {error}; it must be like {{name: car, id: 7}}") from error
    if entry.id is None and entry.color is None:
        raise ValueError(f"entry {index}, {entry.name!r}, has neither an id nor a color")
    return entry


def _numbered(entries: Sequence[_Entry]) -> MaskClasses:
    """Make categories of all classes but background: of their ids if all entries have one, else 1, 2, …"""
    categories: list[Category] = []
    category_of: dict[int, int | None] = {}
    has_ids = all(entry.id is not None for entry in entries)
    for entry in entries:
        category = None
        if entry.name.casefold().strip("_") != BACKGROUND:
            category = entry.id if has_ids and entry.id is not None else len(categories) + 1
            categories.append(Category(id=category, name=entry.name))
        values = [] if entry.id is None else [entry.id]
        values += [] if entry.color is None else [color_value(entry.color)]
        for value in values:
            if value in category_of:
                raise ValueError(f"{show_value(value)} is given to two classes, one of them {entry.name!r}")
            category_of[value] = category
    return MaskClasses(categories, category_of)
