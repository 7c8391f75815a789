"""List of the predictions in an output folder, with their model and settings: `predictions.json`."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, read_json, write_json
from cocoseg.inference.find_images import MANIFEST, ImageFile


class Entry(msgspec.Struct, gc=False):
    """An image that was predicted.

    Attributes:
        image: path of its file, relative to the output folder.
        name: path of its results below their folders, without their endings.
        file_bytes, changed_ns: size and modification time of the file when it was read.
        height, width: in pixels, upright.
        pixels: number of pixels by class index.
    """

    image: str
    name: str
    file_bytes: int
    changed_ns: int
    height: int
    width: int
    pixels: dict[int, int] = {}


class _Content(msgspec.Struct):
    model: str
    settings: dict[str, Any]
    images: list[Entry] = []


class Manifest:
    """The entries of an output folder, read from it and written to it.

    Args:
        output: the folder.
        model: hash of the model's file.
        settings: other settings that the masks depend on.

    Attributes:
        entries: by `Entry.name`.

    Raises:
        CocosegError: the folder holds predictions of another model or other settings, or its manifest is
            damaged.
    """

    def __init__(self, output: Path, model: str, settings: dict[str, Any]):
        self.output, self.model, self.settings = output, model, settings
        found = self._read()
        now, before = {"model": model, **settings}, {"model": found.model, **found.settings}
        if before.get("scales") == [1.0]:  # a setting that is gone, at the value that changed nothing
            del before["scales"]
        if other := [key for key in {**now, **before} if now.get(key) != before.get(key)]:
            raise CocosegError(
                f"output: {from_here(output)} holds predictions made with another {', '.join(other)}; "
                "name another output, or delete that folder"
            )
        self.entries = {entry.name: entry for entry in found.images}

    def _read(self) -> _Content:
        path = self.output / MANIFEST
        if not path.exists():
            return _Content(self.model, self.settings)
        try:
            return read_json(path, _Content, strict=False)
        except (OSError, ValueError) as error:
            raise CocosegError(f"{from_here(path)}: damaged ({error}); name another output") from error

    def write(self) -> None:
        images = [msgspec.to_builtins(entry, str_keys=True) for entry in self.entries.values()]
        content = {"model": self.model, "settings": self.settings, "images": images}
        write_json(self.output / MANIFEST, content)

    def is_done(self, image: ImageFile) -> bool:
        """Tell whether the image was predicted and its file has not changed since."""
        entry = self.entries.get(image.result_name)
        if entry is None or entry.image != relative_path(image.path, self.output):
            return False
        if image.listed == (entry.height, entry.width) != (entry.width, entry.height):
            return False  # width and height are swapped: the image may be turned otherwise now
        stat = image.path.stat()
        return (entry.file_bytes, entry.changed_ns) == (stat.st_size, stat.st_mtime_ns)

    def require_distinct_results(self, images: Iterable[ImageFile]) -> None:
        """Raise CocosegError where the results of two images would have the same name.

        Images that were predicted before count, too, as long as their files exist.
        """
        # Most file systems of macOS and Windows do not distinguish upper and lower case.
        fold = str.casefold if sys.platform in ("darwin", "win32") else str
        entries = self.entries.values()
        owners = {fold(one.name): one.image for one in entries if (self.output / one.image).exists()}
        for image in images:
            path = relative_path(image.path, self.output)
            owner = owners.setdefault(fold(image.result_name), path)
            if owner != path:
                other = from_here(os.path.normpath(self.output.absolute() / owner))
                raise CocosegError(
                    f"input: {image.path} and {other} would have the same results ({image.result_name}.png); "
                    "rename one, name another output, or give a pattern that matches only one"
                )


def relative_path(path: Path, folder: Path) -> str:
    """Path of a file relative to a folder, with `/`. It identifies an image from one run to the next."""
    return Path(os.path.relpath(path, folder)).as_posix()
