"""Image files whose names differ from those in the annotation file: by case, ending, folder and the like."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import PIL.Image

from cocoseg.errors import printable
from cocoseg.images.image_files import FORMATS


@cache
def _endings() -> set[str]:
    """Endings of image files that can be read, with their dots."""
    PIL.Image.init()  # loads all plugins of Pillow
    return {end for end, name in PIL.Image.registered_extensions().items() if name in FORMATS}


def _plain_ending(name: str) -> str:
    """The name with the same ending for all image formats; its case stays."""
    stem, dot, ending = name.rpartition(".")
    if dot and f".{ending.lower()}" in _endings():
        return stem + (".IMG" if ending.isupper() else ".img")
    return f"{name}.img"


FOLDER = "folder"
MANY = 100  # candidates of one name that are compared
# How a name may differ, most harmless first, and the function that makes two such names the same.
DIFFERENCES: dict[str, Callable[[str], str]] = {
    r"\ for /": lambda name: name.replace("\\", "/"),
    "%-escapes": unquote,
    "Unicode form (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "blanks": lambda name: "_".join(re.split(r"[\s_]+", name.strip())),
    "case": str.casefold,
    "ending": _plain_ending,
    FOLDER: lambda name: PurePosixPath(name).name,
}


class Similar(NamedTuple):
    """A file that an image may be in.

    Attributes:
        name: below the image folder.
        differences: keys of DIFFERENCES.
    """

    name: str
    differences: tuple[str, ...]


def find_similar(missing: Sequence[str], listed: Iterable[str], folder: Path) -> dict[str, Similar]:
    """Find the one file of a similar name for each name without a file.

    Names that several files fit equally well, or that share a file with others, are left out.

    Args:
        missing: names without a file, below the folder.
        listed: the names of all images; the files of others are not taken.
    """
    taken = {str(PurePosixPath(name)) for name in listed}
    files: dict[str, list[str]] = defaultdict(list)
    for file in _files_below(folder):
        if file not in taken:
            for key in _keys(file):
                files[key].append(file)
    found = {}
    for name in missing:
        # Videos have frames of equal names in hundreds of folders: only those of one folder are compared.
        candidates = next((files[key] for key in _keys(name) if 0 < len(files[key]) <= MANY), [])
        fitting = sorted((_distance(name, file), file) for file in candidates)
        if fitting and (len(fitting) == 1 or fitting[0][0] < fitting[1][0]):
            file = fitting[0][1]
            found[name] = Similar(file, _differences(name, file))
    uses = Counter(similar.name for similar in found.values())
    return {name: similar for name, similar in found.items() if uses[similar.name] == 1}


def _files_below(folder: Path) -> Iterable[str]:
    for path, _, names in os.walk(folder):
        place = PurePosixPath(Path(path).relative_to(folder).as_posix())
        yield from (str(place / name) for name in names if printable(name) == name)


def _keys(name: str) -> dict[str, None]:
    """Parts that two similar names have in common: folder and name, or at least the name."""
    return dict.fromkeys(("/".join(PurePosixPath(_plain(name, but=FOLDER)).parts[-2:]), _plain(name)))


@lru_cache(2**18)
def _plain(name: str, *, but: str | None = None) -> str:
    """The name without any difference, one apart."""
    for difference, function in DIFFERENCES.items():
        if difference != but:
            name = function(name)
    return name


def _differences(name: str, other: str) -> tuple[str, ...]:
    return tuple(key for key in DIFFERENCES if _plain(name, but=key) != _plain(other, but=key))


def _distance(name: str, other: str) -> tuple[int, int]:
    """The differences, later ones of DIFFERENCES worse; then the number of folders that agree, negative."""
    weights = {difference: 1 << position for position, difference in enumerate(DIFFERENCES)}
    ends = [PurePosixPath(_plain(text, but=FOLDER)).parts[::-1] for text in (name, other)]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
    return sum(weights[difference] for difference in _differences(name, other)), -len(list(shared))
