"""Finding the images to predict, and the names of their results. No torch, no Pillow."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cocoseg.errors import CocosegError
from cocoseg.files import from_here

MANIFEST = "predictions.json"  # marks an output folder, see manifest.py

# Endings that count as images in a folder; a file or pattern that is typed may have any.
ENDINGS = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "tif", "tiff", "webp", "avif"),
    *("jp2", "j2k", "jpx", "ppm", "pgm", "pbm", "pnm"),
}


@dataclass(frozen=True)
class ImageFile:
    """An image to predict.

    Attributes:
        path: path of the file.
        name: its path below the input, with `/`.
    """

    path: Path
    name: str

    @property
    def result_name(self) -> str:
        """`name` without its ending: results are `masks/<result_name>.png` and so on."""
        return self.name[: len(self.name) - len(self.path.suffix)]


def find_images(input: str, output: Path) -> list[ImageFile]:
    """Find the images of a file, a folder (with all below it) or a pattern, sorted by name.

    Args:
        input: as typed; `**` in a pattern stands for any folders.
        output: folder of the results. Its files, and those of other output folders below the input, are
            never taken for images.

    Raises:
        CocosegError: there are none.
    """
    path = Path(input)
    if path.is_dir():
        base, found = path, [file for file in _below(path) if file.suffix[1:].lower() in ENDINGS]
    elif path.exists():
        base, found = path.parent, [path]
    elif glob.has_magic(input):
        base = _fixed_part(path)
        found = _matching(base, path)
    else:
        raise CocosegError(f"input: no file or folder {input}")
    found = [file for file in found if file.is_file()]
    images = {ImageFile(file, _name(file, base)) for file in _no_results(found, base, output)}
    if not images:
        what = "nothing but results of predict.py" if found else "no image"
        raise CocosegError(f"input: {what} in {input}")
    return sorted(images, key=lambda image: image.name)


def relative_path(path: Path, folder: Path) -> str:
    """Path of a file relative to a folder, with `/`: identifies an image from one run to the next."""
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def is_utf8(image: ImageFile, output: Path) -> bool:
    """Whether the names of its file and folders are UTF-8, as JSON and HTML require."""
    try:
        relative_path(image.path, output).encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(folder: Path) -> Iterable[Path]:
    """All files but hidden ones; folders that are links are not followed, they may form circles."""

    def stop(error: OSError) -> None:
        raise CocosegError(f"input: {from_here(error.filename)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _matching(base: Path, pattern: Path) -> list[Path]:
    """All files but hidden ones that match a pattern below a folder."""
    try:
        files = base.glob(str(pattern.relative_to(base)))
        return [
            file
            for file in files
            if not any(part[0] == "." and part != ".." for part in file.relative_to(base).parts)
        ]
    except ValueError as error:  # pathlib refuses `**.jpg` before Python 3.13
        raise CocosegError(f"input: {pattern}: {error}; write **/*.jpg for all folders below") from error


def _no_results(files: Iterable[Path], base: Path, output: Path) -> list[Path]:
    """Files that are neither in the output folder nor in another one between them and the base."""
    output, base = output.resolve(), base.absolute()

    @cache
    def is_of_results(folder: Path) -> bool:
        if folder.resolve().is_relative_to(output):
            return True
        below = folder != base and folder.is_relative_to(base)
        return below and ((folder / MANIFEST).exists() or is_of_results(folder.parent))

    return [file for file in files if not is_of_results(file.parent.absolute())]


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first part with a wildcard."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _name(file: Path, base: Path) -> str:
    """Path relative to the base; the file's name alone where that would lead above it."""
    relative = Path(os.path.relpath(file.absolute(), base.absolute()))
    return file.name if relative.parts[0] == ".." else relative.as_posix()
