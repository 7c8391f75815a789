"""Files that appear whole or not at all, folders that one process at a time writes to."""

import csv
import errno
import json
import logging
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from filelock import FileLock, Timeout

from cocoseg.errors import CocosegError, WriteError

if TYPE_CHECKING:
    import PIL.Image

log = logging.getLogger(__name__)

PART = ".part-"  # beginning of the names of unfinished files
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings of what a spreadsheet computes
LOCK = ".lock"  # lock file of a folder
YAML_LIMIT, YAML_DEPTH = 2**17, 32  # bytes and levels; the settings of a run have a few thousand, and 5
LOCK_TIMEOUT = 15.0  # seconds; the loaders of a killed process live on for some, and hold its lock
# Options of `save_png` for label masks. They are long runs of equal values, so run lengths are all that zlib
# has to look for: a third of the time of Pillow's default, and files as small.
RUN_LENGTHS = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def require_regular(path: str | Path) -> None:
    """Raise OSError for a FIFO, a socket or a device: reading one may wait forever, or never end."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a FIFO, a socket or a device, no file", str(path))


def read_bytes(path: Path) -> bytes:
    """Read a regular file.

    Raises:
        OSError: it can't be read, or is no regular file.
    """
    require_regular(path)
    return path.read_bytes()


def read_json(path: Path, kind: Any = Any, *, strict: bool = True) -> Any:
    """Read a JSON file as values of a type, see `msgspec.json.decode`.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError: it is no JSON, or of another type.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=kind, strict=strict)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_yaml(path: Path) -> Any:
    """Read a small YAML file of plain values. Aliases are refused: a few lines of them can take gigabytes.

    Raises:
        OSError: it can't be read, or is no regular file.
        ValueError, yaml.YAMLError: it is no such YAML.
    """
    import yaml  # omegaconf's dependency; models are loaded without both

    require_regular(path)
    with path.open("rb") as file:
        content = file.read(YAML_LIMIT + 1)
    if len(content) > YAML_LIMIT:
        raise ValueError(f"it has more than {YAML_LIMIT} bytes")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is not everywhere
    depth = 0
    for event in yaml.parse(content, loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > YAML_DEPTH:
            raise ValueError(f"it is nested more than {YAML_DEPTH} levels deep")
    return yaml.load(content, loader)


def files_below(folder: Path, key: str) -> Iterator[Path]:
    """All files below a folder but those in hidden folders and in folders that are links.

    Args:
        key: setting that gives the folder.

    Raises:
        CocosegError: a folder can't be read.
    """

    def refuse(error: OSError) -> None:
        raise CocosegError(f"{key}: {from_here(error.filename)}: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files)


def key_of_files(files: Iterable[Path], meaning: Sequence[Any]) -> str:
    """Hash of the sizes and modification times of files, and of plain values.

    Raises:
        OSError: a file is missing.
    """
    states = [(status.st_size, status.st_mtime_ns) for status in map(os.stat, files)]
    return blake2b(json.dumps([*meaning, states]).encode(), digest_size=8).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to. It replaces `path` if the block ends without error.

    Raises:
        WriteError: the disk is full, the folder can't be written to, or the like.
    """
    temporary = path.with_name(f"{PART}{os.urandom(6).hex()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{path}: can't be written ({error.strerror or error})") from error
        raise


def remove_parts(folder: Path) -> None:
    """Remove unfinished files of a killed process; no other process may be writing there."""
    for part in folder.glob(f"{PART}*"):
        part.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Tell whether a folder holds nothing but our lock and unfinished files; hidden files count."""
    return all(entry.name == LOCK or entry.name.startswith(PART) for entry in folder.iterdir())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def save_png(path: Path, image: "PIL.Image.Image", **options: Any) -> None:
    """Write an image as PNG, whole or not at all, with options of Pillow's writer.

    It is encoded in memory and written at once, so errors of Pillow and of the disk stay apart.
    """
    buffer = BytesIO()
    image.save(buffer, format="PNG", **options)
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all: a line per key, and per entry of a list of objects."""
    lines = []
    for key, value in content.items():
        text = msgspec.json.encode(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = b"[\n  " + b",\n  ".join(map(msgspec.json.encode, value)) + b"\n ]"
        lines.append(b" " + msgspec.json.encode(key) + b": " + text)
    write_bytes(path, b"{\n" + b",\n".join(lines) + b"\n}\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys, at least one, as CSV, whole or not at all.

    Numbers are written in full, and None as an empty cell. An apostrophe goes before text that a spreadsheet
    would run as a formula.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (list(rows[0]), *(list(row.values()) for row in rows)):
        writer.writerow([_as_text(cell) if isinstance(cell, str) else cell for cell in row])
    write_bytes(path, text.getvalue().encode())


def _as_text(cell: str) -> str:
    if not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)  # a negative number is no formula
    except ValueError:
        return f"'{cell}"
    return cell


def make_folders(folder: Path, *, exist_ok: bool = True) -> Callable[[], None]:
    """Make a folder and those above it. Returns a function that removes those of them that are still empty.

    Raises:
        OSError: it can't be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=exist_ok)

    def remove() -> None:
        with suppress(OSError):  # the first one that is not empty ends it
            for path in made:
                path.rmdir()

    return remove


@contextmanager
def writing_to(folder: Path, *, key: str | None = None) -> Iterator[None]:
    """Raise a CocosegError that names the folder and its key where the block can't write to it."""
    try:
        yield
    except OSError as error:
        name = "" if key is None else f"{key}: "
        advice = "" if key is None else "; name another folder"
        raise CocosegError(
            f"{name}{from_here(folder)} can't be written to ({error.strerror or error}){advice}"
        ) from error


@contextmanager
def locked(folder: Path, *, key: str | None = None, name: str = LOCK) -> Iterator[None]:
    """Keep other processes out of a folder during the block. An empty folder keeps no lock file after it.

    Args:
        key: setting that names the folder, for messages; None to wait as long as it takes.
        name: of the lock file.

    Raises:
        CocosegError: the folder can't be written to; with a key, another process is still there after
            LOCK_TIMEOUT seconds; or this process has locked the folder for something else.
    """
    with writing_to(folder, key=key):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    while not lock.is_locked:
        log.info("%s: another process writes to it; waiting", from_here(folder))
        try:
            lock.acquire(timeout=-1 if key is None else LOCK_TIMEOUT)
        except FileNotFoundError:  # the other process wrote nothing and removed the folder
            folder.mkdir(parents=True, exist_ok=True)
        except Timeout as error:
            raise CocosegError(
                f"{key}: another process writes to {from_here(folder)}; wait for it, or name another folder"
            ) from error
        except RuntimeError as error:  # filelock sees that it would wait for itself
            raise CocosegError(
                f"{from_here(folder)} is named for two things that this command writes; name another folder "
                "for one of them"
            ) from error
    try:
        yield
    finally:
        if [file.name for file in folder.glob("*")] == [name]:
            with suppress(OSError):  # Windows deletes no file that is open
                (folder / name).unlink()
        lock.release()


def from_here(path: str | Path) -> Path:
    """A path as a user would type it: relative to the current folder where it lies in it."""
    path, here = Path(path), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
