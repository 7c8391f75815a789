"""Finding the images to predict, and the names of their results. No torch."""

import glob
from dataclasses import dataclass
from pathlib import Path

from cocoseg.errors import CocosegError
from cocoseg.files import files_below
from cocoseg.images.similar_names import endings

MANIFEST = "predictions.json"  # marks an output folder, see manifest.py


@dataclass(frozen=True)
class ImageFile:
    """An image to predict.

    Attributes:
        path: path of the file.
        name: its path below the input, with `/`.
        listed: width and height in the annotation file; None without such a file, or where it is not listed.
    """

    path: Path
    name: str
    listed: tuple[int, int] | None = None

    @property
    def result_name(self) -> str:
        """The `name` without its ending; the results are `masks/<result_name>.png` and so on."""
        return self.name.removesuffix(self.path.suffix)


def find_images(input: str, output: Path) -> list[ImageFile]:
    """Find the images of a file, a folder (with all its subfolders) or a pattern, sorted by name.

    Hidden files, and folders that are links, are skipped.

    Args:
        input: as typed; `**` in a pattern stands for any folders.
        output: folder of the results. Its files, and those of other output folders below the input, are
            never taken as images.

    Raises:
        CocosegError: there are none, or a folder can't be read.
    """
    path = Path(input)
    if path.is_file():
        return [ImageFile(path, path.name)]
    if path.is_dir():
        ends = endings()
        base, found = path, (file for file in files_below(path, "input") if file.suffix.lower() in ends)
    elif glob.has_magic(input):
        base, pattern = _split(path)
        found = base.glob(pattern)
    else:
        raise CocosegError(f"input: no file or folder {input}")
    place, output = base.resolve(), output.resolve()
    names = (file.relative_to(base) for file in found if file.is_file())
    chosen = (name for name in names if not _is_skipped(name, place, output))
    images = [ImageFile(base / name, name.as_posix()) for name in chosen]
    if not images:
        raise CocosegError(f"input: no image in {input} (results of predict.py do not count)")
    return sorted(images, key=lambda image: image.name)


def _split(pattern: Path) -> tuple[Path, str]:
    """Split a pattern into the folder before the first part with a wildcard, and the rest."""
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    if ".." in parts[first:] or any("**" in part and part != "**" for part in parts):
        raise CocosegError(
            f"input: {pattern}: write **/*.jpg for all folders below, and no .. after a wildcard"
        )
    return Path(*parts[:first]), str(Path(*parts[first:]))


def _is_skipped(name: Path, base: Path, output: Path) -> bool:
    """Tell whether a file below the base is hidden, or in the output folder or another one below the base."""
    folders = [base / folder for folder in name.parents][:-1]  # the last is the base
    return (
        any(part.startswith(".") for part in name.parts)
        or (base / name).is_relative_to(output)
        or any((folder / MANIFEST).exists() for folder in folders)
    )
