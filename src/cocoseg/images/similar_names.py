"""Image files whose names differ from those in the annotation file, by case, ending, folder and the like."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import PIL.Image

from cocoseg.errors import printable
from cocoseg.images.image_files import FORMATS


@cache
def endings(formats: tuple[str, ...] = FORMATS) -> set[str]:
    """Endings of the files of these formats, with their dots."""
    return {end for end, name in PIL.Image.registered_extensions().items() if name in formats}


def find_similar(missing: Sequence[str], listed: Iterable[str], folder: Path) -> dict[str, str]:
    """Find a file of a similar name for each name without a file.

    Names that several files fit equally well, or that fit the same file as another name, are left out.

    Args:
        missing: names without a file, below the folder.
        listed: the names of all images, whose own files are left out.

    Returns:
        name -> name of the file, below the folder.
    """
    taken = {str(PurePosixPath(name)) for name in listed}
    files: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path, _, names in os.walk(folder):
        place = PurePosixPath(Path(path).relative_to(folder).as_posix())
        for file in (str(place / name) for name in names if printable(name) == name):
            for key in _keys(file) if file not in taken else ():
                files[key].append(file)
    found = {}
    for name in missing:
        nearest = next((files[key] for key in _keys(name) if key in files), [])
        if len(nearest) == 1:
            found[name] = nearest[0]
    uses = Counter(found.values())
    return {name: file for name, file in found.items() if uses[file] == 1}


def _keys(name: str) -> Iterable[tuple[int, str]]:
    """Keys that similar names have in common, the closest similarity first, each with its rank.

    The first key is the path, in lower case, blanks as `_`, and characters in one Unicode form.
    """
    plain = unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold()
    path = PurePosixPath(re.sub(r"[\s_]+", "_", plain.strip()))
    without_ending = path.with_suffix("") if path.suffix in endings() else path
    folders = without_ending.parts
    return enumerate((str(path), str(without_ending), "/".join(folders[-2:]), "/".join(folders[-1:])))
