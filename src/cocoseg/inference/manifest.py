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

    def require_free_names(self, images: Iterable[ImageFile]) -> None:
        """Refuse images whose results would overwrite those of another image that still exists.

        Raises:
            CocosegError: names both.
        """
        folder = self.path.parent
        owners = {name.casefold(): entry.image for name, entry in self.entries.items()}
        for image in images:
            owner = owners.get(image.result_name.casefold())
            if owner in (None, relative_path(image.path, folder)) or not (folder / owner).exists():
                continue
            other = from_here((folder / owner).resolve())
            raise CocosegError(
                f"output: {from_here(folder)} holds results of {other}, which those of {image.path} would "
                f"overwrite ({image.result_name}.png); name another output"
            )

    def _read(self) -> _Content | None:
        if not os.path.lexists(self.path):
            return None
        try:
            content = msgspec.json.decode(self.path.read_bytes(), type=_Content, strict=False)
            for entry in content.images:
                if not _is_inside(entry.name):
                    raise ValueError(f"{entry.name!r} leads out of the folder")
        except (OSError, ValueError) as error:
            raise CocosegError(f"{from_here(self.path)}: damaged ({error}); name another output") from error
        return content

    def _require_same(self, found: _Content) -> None:
        folder = from_here(self.path.parent)
        advice = "name another output, or delete that folder"
        if found.model != self._content.model:
            raise CocosegError(f"output: {folder} holds predictions of another model; {advice}")
        settings = self._content.settings
        for key in sorted(settings.keys() | found.settings.keys()):
            before, now = found.settings.get(key), settings.get(key)
            if before != now:
                raise CocosegError(
                    f"output: {folder} holds predictions with {key}={_as_override(before)}, now it is "
                    f"{_as_override(now)}; {advice}"
                )


def _is_inside(name: str) -> bool:
    """Whether results of this name stay in their folder. Rules are this system's own: `a:b` may be a name."""
    path = Path(name)
    return bool(path.name) and not path.anchor and ".." not in path.parts and "\0" not in name


def _as_override(value: Any) -> str:
    """Format a value as on the command line."""
    return msgspec.json.encode(value).decode().strip('"')
