"""Images and masks decoded and resized once, as arrays on disk that all processes map into memory.

A folder `arrays/<height>x<width>-<key of the files>` beside the masks holds

    images.npy    (N, H, W, 3) uint8 RGB
    masks.npy     (N, H, W) uint8 class indices, 255 where ignored
    counts.npy    (N, 256) int32 pixels per class index
    arrays.json   what they were made from, and their own sizes and times of change

Arrays that don't agree with `arrays.json` are made anew.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cocoseg.errors import CocosegError
from cocoseg.files import locked, write_json
from cocoseg.progress import track
from cocoseg.workers import parallel_map

log = logging.getLogger(__name__)

LAYOUT = 2  # counted up when what is written changes, or how images are resized
IMAGES, MASKS, COUNTS, RECORD = "images.npy", "masks.npy", "counts.npy", "arrays.json"
FILES = (IMAGES, MASKS, COUNTS)
NEW = "new.part"  # folder in which arrays are made before they get their name


class Arrays:
    """Images (N, H, W, 3) and masks (N, H, W), uint8, mapped into memory and shared by all who open them."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Plain arrays on the same memory: np.memmap's own indexing is slower.
        self._images = np.asarray(np.load(folder / IMAGES, mmap_mode="r"))
        self._masks = np.asarray(np.load(folder / MASKS, mmap_mode="r"))
        self._counts = np.load(folder / COUNTS)

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)  # else a process that is not forked would get a copy of it all

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copy images (B, H, W, 3) and masks (B, H, W), uint8."""
        return (
            torch.from_numpy(np.take(self._images, indices, axis=0)),
            torch.from_numpy(np.take(self._masks, indices, axis=0)),
        )

    def counts(self, indices: Sequence[int]) -> np.ndarray:
        """Pixels per class index in masks: (B, 256) int32."""
        return self._counts[list(indices)]


def count(mask: np.ndarray) -> np.ndarray:
    """Count the pixels per class index of a uint8 mask: (256,) int32."""
    return np.bincount(mask.reshape(-1), minlength=256).astype(np.int32)


@dataclass(frozen=True)
class Source:
    """The files and the rules that arrays are made from.

    Attributes:
        images, masks: the files, of which size and time of change count.
        meaning: their names and whatever else shapes the arrays' values, in plain values.
        image_size: (height, width) in pixels.
        decode: index -> image (H, W, 3) and mask (H, W), uint8.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    meaning: Any
    image_size: tuple[int, int]
    decode: Callable[[int], tuple[np.ndarray, np.ndarray]]

    def key(self) -> str:
        """Hash of all but the size."""
        files = [_state(path) for path in (*self.images, *self.masks)]
        content = json.dumps([LAYOUT, self.meaning, files])
        return blake2b(content.encode(), digest_size=16).hexdigest()

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of each of FILES."""
        total, (height, width) = len(self.images), self.image_size
        return {
            IMAGES: ((total, height, width, 3), np.uint8),
            MASKS: ((total, height, width), np.uint8),
            COUNTS: ((total, 256), np.int32),
        }


def open_arrays(folder: Path, source: Source, workers: int | None = None) -> Arrays:
    """Open the arrays below `folder`, made first where they are missing, out of date or damaged.

    One process at a time makes them, others wait.

    Args:
        folder: holds the arrays of all sizes.
        source: the files to make them from.
        workers: processes; None for one per core.

    Raises:
        CocosegError: the disk has too little room, or an image or mask can't be read.
    """
    key = source.key()
    height, width = source.image_size
    path = folder / f"{height}x{width}-{key[:8]}"
    if not _is_whole(path, key):
        with locked(folder):
            if not _is_whole(path, key):  # still: another process may have made them meanwhile
                _make(path, key, source, workers)
    return Arrays(path)


def _make(path: Path, key: str, source: Source, workers: int | None) -> None:
    begin, total = time.monotonic(), len(source.images)
    new = path.with_name(NEW)
    # Arrays of files as they were once, in whatever size; and these, if they are damaged.
    outdated = (old for old in path.parent.glob("*x*-*") if old == path or not old.name.endswith(key[:8]))
    _remove([*outdated, new])
    _require_room(path.parent, source)
    log.info("%s: decoding %d images once", path, total)
    try:
        for name, (shape, dtype) in source.shapes().items():
            _allocate(new / name, shape, dtype)
        fill = _Filler(new, source)
        filling = parallel_map(fill, iter(range(total)), total, workers)
        with closing(filling):
            for _ in track(filling, total=total, what="decoded"):
                pass
        for name in FILES:
            with (new / name).open("r+b") as file:
                os.fsync(file.fileno())
        write_json(new / RECORD, {"key": key, "files": _files(new)})
        new.rename(path)
    finally:
        _remove([new])
    log.info("%s: %d images in %.1f s", path, total, time.monotonic() - begin)


class _Filler:
    """Decodes one image and its mask into the arrays of a folder, which each process opens for itself."""

    def __init__(self, folder: Path, source: Source):
        self.folder, self.source = folder, source
        self._arrays: list[np.ndarray] = []

    def __call__(self, index: int) -> None:
        if not self._arrays:
            self._arrays = [np.load(self.folder / name, mmap_mode="r+") for name in FILES]
        image, mask = self.source.decode(index)
        for array, values in zip(self._arrays, (image, mask, count(mask)), strict=True):
            array[index] = values


def _require_room(folder: Path, source: Source) -> None:
    height, width = source.image_size
    needed = len(source.images) * (height * width * 4 + 256 * 4)  # bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CocosegError(
            f"{folder}: {len(source.images)} decoded images of {height}x{width} need "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: set data.cache=false, "
            "a smaller data.cache_size or data.image_size, or data.prepared_dir on another disk"
        )


def _allocate(path: Path, shape: tuple[int, ...], dtype: type) -> None:
    """Make the file with all its room: writing to memory that a full disk can't back ends the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise CocosegError(f"{path}: can't be written ({error.strerror or error})") from error


def _is_whole(folder: Path, key: str) -> bool:
    try:
        return json.loads((folder / RECORD).read_bytes()) == {"key": key, "files": _files(folder)}
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> list[list[Any]]:
    return [_state(folder / name) for name in FILES]


def _state(path: Path) -> list[Any]:
    """Name, size and time of change."""
    try:
        status = path.stat()
    except OSError as error:
        raise CocosegError(f"{path}: not readable ({error.strerror}); run prepare.py again") from error
    return [path.name, status.st_size, status.st_mtime_ns]


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
