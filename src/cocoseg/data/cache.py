"""Images and masks decoded and resized once, as arrays on disk that all processes map into memory.

A folder `arrays/<height>x<width>-<key of the files>` beside the masks holds

    images.npy    (N, H, W, 3) uint8 RGB
    masks.npy     (N, H, W) uint8 class indices, 255 where ignored
    counts.npy    (N, 256) int32 pixels per class index

The folder gets its name when it is complete.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from cocoseg.durations import now
from cocoseg.errors import CocosegError, count_of
from cocoseg.files import key_of_files, locked
from cocoseg.progress import track
from cocoseg.workers import parallel_map

log = logging.getLogger(__name__)

LAYOUT = 3  # counted up when what is written changes, or how images are resized
IMAGES, MASKS, COUNTS = "images.npy", "masks.npy", "counts.npy"
NEW = "new.part"  # folder in which arrays are made before they get their name
REMOVABLE = re.compile(rf"\d+x\d+-[0-9a-f]{{16}}|{re.escape(NEW)}")  # folders that may be removed

Mode = Literal["r", "r+"]
Decode = Callable[[int], tuple[np.ndarray, np.ndarray]]


class Arrays:
    """Images, masks and counts of a folder, mapped into memory and shared by all processes that open them.

    Args:
        folder: holds the files.
        mode: `r` to read them, `r+` to write to them too.

    Raises:
        OSError, ValueError, EOFError: a file is missing or cut short.
    """

    def __init__(self, folder: Path, mode: Mode = "r"):
        self.folder, self.mode = folder, mode
        # Plain arrays on the same memory: np.memmap's own indexing is slower.
        self.images, self.masks, self.counts = (
            np.asarray(np.load(folder / name, mmap_mode=mode)) for name in (IMAGES, MASKS, COUNTS)
        )

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Mode]]:
        return type(self), (self.folder, self.mode)  # without this, spawned processes would get copies

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Copy images (B, H, W, 3) and masks (B, H, W), uint8."""
        image, mask = (np.take(values, indices, axis=0) for values in (self.images, self.masks))
        return torch.from_numpy(image), torch.from_numpy(mask)


def count(mask: np.ndarray) -> np.ndarray:
    """Count the pixels per class index of a uint8 mask: (256,) int32."""
    return np.bincount(mask.reshape(-1), minlength=256).astype(np.int32)


def key_of(files: Iterable[Path], meaning: Any) -> str:
    """Hash sizes and modification times of files, and plain values; CocosegError if a file is missing."""
    try:
        return key_of_files(files, [LAYOUT, meaning])
    except OSError as error:
        raise CocosegError(f"{error.filename}: {error.strerror}; run prepare.py again") from error


def open_arrays(
    folder: Path, key: str, shape: tuple[int, int, int], decode: Decode, workers: int | None = None
) -> Arrays:
    """Open the arrays below `folder`; make them first where they are missing, out of date or cut short.

    One process makes them, while the others wait.

    Args:
        folder: holds the arrays of all sizes.
        key: of the files that they are made from, see `key_of`.
        shape: (images, height, width).
        decode: index -> image (H, W, 3) and mask (H, W), uint8.
        workers: processes; None for one per core.

    Raises:
        CocosegError: the disk has too little room, or an image or mask can't be read.
    """
    _, height, width = shape
    path = folder / f"{height}x{width}-{key}"
    if arrays := _open(path):
        return arrays
    with locked(folder):
        if arrays := _open(path):  # another process has made them meanwhile
            return arrays
        # Remains of a killed process, and arrays of files that have changed since.
        for old in [found for found in folder.iterdir() if REMOVABLE.fullmatch(found.name)]:
            if old == path or not old.name.endswith(key):
                shutil.rmtree(old, ignore_errors=True)
        try:
            _make(folder / NEW, shape, decode, workers)
            (folder / NEW).rename(path)
        finally:
            shutil.rmtree(folder / NEW, ignore_errors=True)
    return Arrays(path)


def _open(folder: Path) -> Arrays | None:
    try:
        return Arrays(folder)
    except (OSError, ValueError, EOFError):
        return None


def _make(folder: Path, shape: tuple[int, int, int], decode: Decode, workers: int | None) -> None:
    begin, total = now(), shape[0]
    log.info("%s: decoding %s once", folder.parent, count_of(total, "image"))
    _allocate(folder, shape)
    fill = partial(_fill, Arrays(folder, "r+"), decode)
    filling = parallel_map(fill, iter(range(total)), total, workers)
    with closing(filling):
        for _ in track(filling, total=total, what="decoded"):
            pass
    for file in folder.iterdir():
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
    log.info("%s: %s in %.1f s", folder.parent, count_of(total, "image"), now() - begin)


def _fill(arrays: Arrays, decode: Decode, index: int) -> None:
    image, mask = decode(index)
    arrays.images[index], arrays.masks[index], arrays.counts[index] = image, mask, count(mask)


def _allocate(folder: Path, shape: tuple[int, int, int]) -> None:
    """Create the files and reserve their space: writing to mapped memory on a full disk ends the process."""
    images, height, width = shape
    files = {IMAGES: ((*shape, 3), np.uint8), MASKS: (shape, np.uint8), COUNTS: ((images, 256), np.int32)}
    folder.mkdir()
    try:
        for name, (size, dtype) in files.items():
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=size)
            if hasattr(os, "posix_fallocate"):
                with (folder / name).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            elif shutil.disk_usage(folder).free < 4 * images * height * width:  # macOS, Windows
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise CocosegError(
            f"{folder.parent}: {images} decoded images of {height}x{width} need "
            f"{4 * images * height * width / 1e9:.1f} GB ({error.strerror}): set data.cache=false, a smaller "
            "data.cache_size or data.image_size, or data.prepared_dir on another disk"
        ) from error
