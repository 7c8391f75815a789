"""What a folder of predictions holds, made by which model and settings: `predictions.json`."""

import os
from pathlib import Path
from typing import Any

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, write_json

FILE = "predictions.json"


class Entry(msgspec.Struct, gc=False):
    """A picture that is done.

    Attributes:
        image: where it lies, seen from the output folder.
        name: of its results, without their endings.
        file_bytes, changed_ns: of the picture's file when it was read: whether it still is the same.
        height, width: in pixels, upright.
        pixels: how many pixels are of each class index, by class index.
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


class Record:
    """The entries of an output folder, read from and written to it.

    Args:
        output: the folder.
        model: hash of the model's file.
        settings: what else the masks depend on.

    Raises:
        CocosegError: the folder holds predictions of another model or other settings, or its record is
            damaged.
    """

    def __init__(self, output: Path, model: str, settings: dict[str, Any]):
        self.path = output / FILE
        # As they will be read back: tuples as lists.
        self._content = _Content(model, msgspec.json.decode(msgspec.json.encode(settings)))
        found = self._read()
        if found is not None:
            self._require_same(found)
        self.entries = {entry.image: entry for entry in found.images} if found else {}

    @property
    def names(self) -> dict[str, str]:
        """Picture -> name of its results."""
        return {image: entry.name for image, entry in self.entries.items()}

    def add(self, entry: Entry) -> None:
        self.entries[entry.image] = entry

    def write(self) -> None:
        content = self._content
        images = [msgspec.to_builtins(entry, str_keys=True) for entry in self.entries.values()]
        write_json(self.path, {"model": content.model, "settings": content.settings, "images": images})

    def is_done(self, image: str, path: Path) -> bool:
        """Whether the picture was predicted and has not been replaced since."""
        entry = self.entries.get(image)
        if entry is None:
            return False
        stat = path.stat()
        return (entry.file_bytes, entry.changed_ns) == (stat.st_size, stat.st_mtime_ns)

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
        where = from_here(self.path.parent)
        advice = "name another output, or delete that folder"
        if found.model != self._content.model:
            raise CocosegError(f"output: {where} holds predictions of another model; {advice}")
        settings = self._content.settings
        for key in sorted(settings.keys() | found.settings.keys()):
            there, here = found.settings.get(key), settings.get(key)
            if there != here:
                raise CocosegError(
                    f"output: {where} holds predictions with {key}={_typed(there)}, now it is "
                    f"{_typed(here)}; {advice}"
                )


def _is_inside(name: str) -> bool:
    """Whether results of this name stay in their folder. Names are this system's own: `a:b` may be one."""
    path = Path(name)
    return bool(path.name) and not path.anchor and ".." not in path.parts and "\0" not in name


def _typed(value: Any) -> str:
    """As on the command line."""
    return msgspec.json.encode(value).decode().strip('"')
