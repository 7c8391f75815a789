"""Files that appear whole or not at all, folders that one process at a time writes to."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=f".{path.name[-40:]}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all: a line per key, and per entry of a list of objects."""
    lines = []
    for key, value in content.items():
        text = msgspec.json.encode(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = b"[\n  " + b",\n  ".join(map(msgspec.json.encode, value)) + b"\n ]"
        lines.append(b" " + msgspec.json.encode(key) + b": " + text)
    write_bytes(path, b"{\n" + b",\n".join(lines) + b"\n}\n")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process downloads into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".download.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process downloads into it; waiting", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def from_here(path: str | Path) -> Path:
    """A path as a user would type it: relative to the current folder where it lies in it."""
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
