"""List of the predictions in an output folder, with their model and settings: `predictions.json`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, write_json
from cocoseg.inference.find_images import MANIFEST, ImageFile, relative_path


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
    pixels: dict[int, int]


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
        self.path = output / MANIFEST
        # As JSON reads them back: tuples become lists.
        self._content = _Content(model, msgspec.json.decode(msgspec.json.encode(settings)))
        found = self._read()
        if found is not None:
            self._require_same(found)
        self.entries = {entry.name: entry for entry in found.images} if found else {}

    def add(self, entry: Entry) -> None:
        self.entries[entry.name] = entry

    def write(self) -> None:
        content = self._content
        images = [msgspec.to_builtins(entry, str_keys=True) for entry in self.entries.values()]
        write_json(self.path, {"model": content.model, "settings": content.settings, "images": images})

    def is_done(self, image: ImageFile) -> bool:
        """Whether the image was predicted and its file has not changed since."""
        entry = self.entries.get(image.result_name)
        if entry is None or entry.image != relative_path(image.path, self.path.parent):
            return False
        stat = image.path.stat()
        return (entry.file_bytes, entry.changed_ns) == (stat.st_size, stat.st_mtime_ns)

    def require_distinct_results(self, images: Iterable[ImageFile]) -> None:
        """Refuse an image whose results would overwrite those of another one that exists.

        The other one is among `images` or was predicted before. Names that differ by case only count as the
        same, because some file systems do not tell them apart.

        Raises:
            CocosegError: names both.
        """
        folder = self.path.parent
        owners = {
            name.casefold(): entry.image
            for name, entry in self.entries.items()
            if (folder / entry.image).exists()
        }
        for image in images:
            path = relative_path(image.path, folder)
            owner = owners.setdefault(image.result_name.casefold(), path)
            if owner != path:
                other = from_here(os.path.normpath(folder.absolute() / owner))
                raise CocosegError(
                    f"input: the results of {image.path} would overwrite those of {other} "
                    f"({image.result_name}.png); rename one, name another output, or give a pattern that "
                    "matches only one, as in 'photos/**/*.jpg'"
                )

    def _read(self) -> _Content | None:
        if not os.path.lexists(self.path):
            return None
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Content, strict=False)
        except (OSError, ValueError) as error:
            raise CocosegError(f"{from_here(self.path)}: damaged ({error}); name another output") from error

    def _require_same(self, found: _Content) -> None:
        folder = from_here(self.path.parent)
        advice = "name another output, or delete that folder"
        if found.model != self._content.model:
            raise CocosegError(f"output: {folder} holds predictions of another model; {advice}")
        settings = self._content.settings
        for key in sorted(settings.keys() | found.settings.keys()):
            before, now = (
                msgspec.json.encode(values.get(key)).decode().strip('"')
                for values in (found.settings, settings)
            )
            if before != now:
                raise CocosegError(
                    f"output: {folder} holds predictions with {key}={before}, now it is {now}; {advice}"
                )
