"""Which pictures to segment, and what their results are called. No torch, no Pillow."""

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.manifest import FILE

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

ENDINGS = (".png", ".jpg", ".image.jpg", ".overlay.jpg", ".mask.png")  # of results
LONGEST_NAME = 255 - max(map(len, ENDINGS))  # bytes, on most file systems


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
        output: results, which are never taken for pictures; neither are those in other outputs below.

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
        found = [file for file in _matching(base, path) if not _is_hidden(file, base)]
    else:
        raise CocosegError(f"input: no file or folder {input}")
    found = [file for file in found if file.is_file()]
    pictures = [Picture(file, _name(file, base)) for file in _no_results(found, base, output)]
    if not pictures:
        what = "nothing but results of predict.py" if found else "no picture"
        raise CocosegError(f"input: {what} in {input}")
    return sorted(pictures, key=lambda picture: picture.name)


def name_results(pictures: Iterable[Picture], taken: Mapping[str, str], output: Path) -> dict[Picture, str]:
    """A name without ending for the results of each picture: no two share one, whatever the file system.

    `photos/a.jpg` becomes `photos/a`; where that is taken, by `photos/a.png` for one, `photos/a.jpg`, and
    then `photos/a.jpg-2`. A name is also taken where one of its files would be called as a folder is; what is
    too long for the endings of results is cut.

    Args:
        taken: key of a picture, see `key`, to the name that it has from before.
    """
    pictures = list(pictures)
    folders = {str(folder).casefold() for p in pictures for folder in PurePosixPath(p.name).parents}
    used = {name.casefold() for name in taken.values()}
    used |= {
        folder.removesuffix(ending) for folder in folders for ending in ENDINGS if folder.endswith(ending)
    }
    names: dict[Picture, str] = {}
    for picture in pictures:
        name = taken.get(key(picture, output))
        if name is None:
            stem = picture.name[: len(picture.name) - len(picture.path.suffix)]
            candidates = map(_shortened, _candidates(stem, picture.name))
            name = next(free for free in candidates if free.casefold() not in used)
            used.add(name.casefold())
        names[picture] = name
    return names


def key(picture: Picture, output: Path) -> str:
    """What tells pictures apart from one run to the next: the way from the output to the file."""
    return Path(os.path.relpath(picture.path.absolute(), output.absolute())).as_posix()


def is_text(picture: Picture, output: Path) -> bool:
    """Whether the names of its file and folders are UTF-8, for the record and the gallery to hold them."""
    try:
        key(picture, output).encode()
    except UnicodeEncodeError:
        return False
    return True


def _candidates(*first: str) -> Iterable[str]:
    yield from first
    number = 2
    while True:
        yield f"{first[-1]}-{number}"
        number += 1


def _shortened(name: str) -> str:
    """With a last part that leaves room for the longest ending; a hash stands for what is cut off."""
    path = PurePosixPath(name)
    part = path.name.encode()
    if len(part) <= LONGEST_NAME:
        return name
    digest = blake2b(part, digest_size=4).hexdigest()
    kept = part[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return str(path.with_name(f"{kept}-{digest}"))


def _below(folder: Path) -> Iterable[Path]:
    """All files; hidden ones, and folders that are links, which may lead round in circles, are left out."""

    def stop(error: OSError) -> None:
        raise CocosegError(f"input: {from_here(error.filename)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _matching(base: Path, pattern: Path) -> list[Path]:
    try:
        return list(base.glob(str(pattern.relative_to(base))))
    except ValueError as error:  # as of `**.jpg`, before Python 3.13
        raise CocosegError(f"input: {pattern}: {error}; write **/*.jpg for all folders below") from error


def _no_results(files: Iterable[Path], base: Path, output: Path) -> list[Path]:
    """Those that are not in the output, nor in another one between them and the base."""
    output, base = output.resolve(), base.absolute()

    @cache
    def is_of_results(folder: Path) -> bool:
        if folder.resolve().is_relative_to(output):
            return True
        below = folder != base and folder.is_relative_to(base)
        return below and ((folder / FILE).exists() or is_of_results(folder.parent))

    return [file for file in files if not is_of_results(file.parent.absolute())]


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
