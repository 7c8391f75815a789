"""Which pictures to segment, and what their results are called. No torch, no Pillow."""

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cocoseg.errors import CocosegError
from cocoseg.files import from_here

# What is taken from a folder; a file or pattern that is typed may end as it likes.
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"} | {
    ".jp2",
    ".j2k",
    ".jpx",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
}


@dataclass(frozen=True)
class Picture:
    """A picture to segment.

    Attributes:
        path: of the file.
        name: its path below the input, with `/`: what results are called after.
    """

    path: Path
    name: str


def find_pictures(input: str, output: Path) -> list[Picture]:
    """The pictures that a file, a folder (with all below it) or a pattern names, sorted by name.

    Args:
        input: as typed; `**` in a pattern stands for any folders.
        output: results, which are never taken for pictures.

    Raises:
        CocosegError: there are none.
    """
    path = Path(input)
    if path.is_dir():
        base, found = path, [file for file in _below(path) if file.suffix.lower() in SUFFIXES]
    elif path.exists():
        base, found = path.parent, [path]
    elif glob.has_magic(input):
        base = _fixed_part(path)
        found = [file for file in base.glob(str(path.relative_to(base))) if not _is_hidden(file, base)]
    else:
        raise CocosegError(f"input: no file or folder {input}")
    if path.is_dir():
        output = output.resolve()
        found = [file for file in found if not file.resolve().is_relative_to(output)]
    pictures = [Picture(file, _name(file, base)) for file in found if file.is_file()]
    if not pictures:
        raise CocosegError(f"input: no picture in {input}")
    return sorted(pictures, key=lambda picture: picture.name)


def name_results(pictures: Iterable[Picture], taken: Mapping[str, str], output: Path) -> dict[Picture, str]:
    """A name without ending for the results of each picture: no two share one, whatever the file system.

    `photos/a.jpg` becomes `photos/a`; where that is taken, by `photos/a.png` for one, `photos/a.jpg`, and
    then `photos/a.jpg-2`.

    Args:
        taken: key of a picture, see `key`, to the name that it has from before.
    """
    used = {name.casefold() for name in taken.values()}
    names: dict[Picture, str] = {}
    for picture in pictures:
        name = taken.get(key(picture, output))
        if name is None:
            stem = picture.name[: len(picture.name) - len(picture.path.suffix)]
            name = next(free for free in _candidates(stem, picture.name) if free.casefold() not in used)
            used.add(name.casefold())
        names[picture] = name
    return names


def key(picture: Picture, output: Path) -> str:
    """What tells pictures apart from one run to the next: the way from the output to the file."""
    return Path(os.path.relpath(picture.path.absolute(), output.absolute())).as_posix()


def _candidates(*first: str) -> Iterable[str]:
    yield from first
    number = 2
    while True:
        yield f"{first[-1]}-{number}"
        number += 1


def _below(folder: Path) -> Iterable[Path]:
    """All files; hidden ones, and folders that are links, which may lead round in circles, are left out."""

    def stop(error: OSError) -> None:
        raise CocosegError(f"input: {from_here(error.filename)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    parts = pattern.parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _is_hidden(file: Path, base: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in file.relative_to(base).parts)


def _name(file: Path, base: Path) -> str:
    """Relative to the base, and never above it."""
    relative = Path(os.path.relpath(file.absolute(), base.absolute()))
    return file.name if relative.parts[0] == ".." else relative.as_posix()
