"""Checks of model files, which may come from anywhere: how much memory and time they may ask for."""

import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from cocoseg.errors import CocosegError
from cocoseg.files import require_regular

# Functions that torch lets a file call and that turn a few bytes into many. No file of ours needs them.
_REFUSED = ("bytearray", "encode")
_LEGACY_PICKLES = 5  # pickles that begin a file in torch's format before 1.6
_ARCHIVE = b"PK\3\4"  # beginning of a zip archive
_VALUES, _DEPTH, _TEXT, _WHOLE = 50_000, 16, 10_000, 2**63  # limits of plain values; 254 classes take 3,000


def require_harmless(path: str | Path) -> None:
    """Refuse a file that takes far more memory than its size once torch reads it.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is refused, or damaged.
    """
    require_regular(path)
    with Path(path).open("rb") as file:
        # By the first bytes, as torch decides: Python's `is_zipfile` looks for the end of an archive.
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
        file.seek(0)
        if not is_archive:
            for _ in range(_LEGACY_PICKLES):
                _check_calls(file)
            return
        with zipfile.ZipFile(file) as archive:
            # A larger sum means compressed entries, which torch never writes, or entries that share bytes.
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError("it would take more memory than its size")
            names = [entry.filename.lower() for entry in archive.infolist()]
            if len(set(names)) < len(names):
                raise ValueError("two entries have one name")
            for entry in archive.infolist():
                if entry.filename.lower().endswith("data.pkl"):
                    with archive.open(entry) as opened:
                        _check_calls(opened)


def _check_calls(pickle: IO[bytes]) -> None:
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name == "GLOBAL" and str(argument).rpartition(" ")[2] in _REFUSED:
            raise ValueError(f"it calls {argument}")


def require_plain(value: Any) -> None:
    """Refuse anything but plain values of a usual number and size, which can be shown in messages.

    A file can refer to one list many times, so a few bytes hold more values than could ever be visited.

    Raises:
        CocosegError: it is refused.
    """
    level, count = [value], 0
    for _ in range(_DEPTH):
        following: list[Any] = []
        for one in level:
            _require_small(one)
            count += 1
            if isinstance(one, dict):
                following += [*one, *one.values()]
            elif isinstance(one, list | tuple):
                following += one
            if count + len(following) > _VALUES:
                raise CocosegError("its description is too large")
        if not following:
            return
        level = following
    raise CocosegError("its description is nested too deep")


def _require_small(value: Any) -> None:
    if not isinstance(value, dict | list | tuple | str | int | float | None):
        raise CocosegError(f"a {type(value).__name__} in it is no plain value")
    if (isinstance(value, str) and len(value) > _TEXT) or (isinstance(value, int) and abs(value) >= _WHOLE):
        raise CocosegError("a text or number in it is too long")
    # A lone surrogate can't be written as UTF-8.
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise CocosegError("a text in it is no Unicode")


def require_weights(weights: Any) -> None:
    """Refuse anything but tensors by name.

    Raises:
        CocosegError: it is refused.
    """
    if not isinstance(weights, Mapping):
        raise CocosegError(f"state_dict is a {type(weights).__name__}, not tensors by name")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CocosegError(f"state_dict holds a {type(value).__name__}, not tensors by name only")
