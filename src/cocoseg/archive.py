"""The annotation file, out of COCO's archive on the web.

The archive grows in a file of its own, `<name>.part`, which the next run resumes after a kill;
`<name>.part.tag` says of which version it is. The annotation file gets its name once it is whole.
"""

import asyncio
import errno
import logging
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import aiohttp
import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import alone_in, write_bytes
from cocoseg.progress import Progress
from cocoseg.web import Client, FinalError, RetryError, checked_url, open_session, save, shown

log = logging.getLogger(__name__)

MIB = 2**20
ANNOTATIONS_LIMIT = 4 * 2**30  # bytes: of the archive, and of a file in it


def fetch_annotations(url: str, *annotation_files: Path, retries: int = 5, pause: float = 1.0) -> None:
    """Fetch COCO's annotation archive and extract these files of it; one that is there is left alone.

    A download that was cut off is resumed, by the next run too, where the server can do that.

    Args:
        url: of a zip with the members annotations/<name of each file>; or, ending in .json, of the one file.
        annotation_files: where to put them.
        retries: how often to try again after an attempt that got nowhere.
        pause: seconds before the first retry, doubled each time.

    Raises:
        CocosegError: it can't be fetched, is no such archive, or is too large; names the url.
        OSError: the disk is full, or the like.
    """
    missing = [path for path in annotation_files if not path.is_file()]
    if not missing:
        return
    source = checked_url(url)
    is_archive = not source.path.endswith(".json")
    if len(annotation_files) > 1 and not is_archive:
        raise CocosegError(f"{shown(url)} is one file, not an archive of {len(annotation_files)}")
    with alone_in(missing[0].parent):
        missing = [path for path in missing if not path.is_file()]  # the process waited for may have put it
        if missing:
            name = re.sub(r"[^\w.-]", "_", PurePosixPath(source.path).name)[-100:]
            part = _Part(missing[0].with_name(f"{name}.part"))
            unpack = partial(_extract if is_archive else _take, part.path, shown(url), missing)
            _fetch_and_unpack(url, part, unpack, retries, pause)


class _DamagedError(CocosegError):
    """What was fetched is not what the server has, or the server's file is broken."""


class _Part:
    """What there is of a file, and the server's tag for the version that it is of."""

    def __init__(self, path: Path):
        self.path = path
        self.resumed = False
        self._tag = path.with_name(f"{path.name}.tag")

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def conditions(self) -> dict[str, str]:
        """The headers of a request for the rest, of the same version only."""
        tag = self._tag.read_text("latin-1") if self._tag.exists() else ""
        return {"Range": f"bytes={self.size()}-", "If-Range": tag} if tag and self.size() else {}

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """Make ready for the body of this answer, which is the rest or the whole.

        Raises:
            RetryError: it is another part than the one asked for.
        """
        if response.status == 200:
            self.resumed = False
            self.path.write_bytes(b"")  # before the new tag, which the old bytes don't belong to
            write_bytes(self._tag, _tag_of(response.headers).encode("latin-1"))
            return
        first, _ = _content_range(response)
        same = _tag_of(response.headers) in ("", self._tag.read_text("latin-1"))  # some ignore If-Range
        if first != self.size() or not same:
            self.discard()
            raise RetryError("the server sent another part than the one asked for")
        self.resumed = True

    def check_complete(self, response: aiohttp.ClientResponse) -> None:
        """Compare the size with what the server says, where it does."""
        _, total = _content_range(response)
        if response.status == 416:  # nothing lies beyond what is there
            self.resumed = True
        elif total is None:
            return
        if total != self.size():
            self.discard()
            raise RetryError("the size is not the one that the server said")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)


def _tag_of(headers: Mapping[str, str]) -> str:
    """What tells this version of a file from others; empty if the server doesn't say."""
    tag = headers.get("ETag", "")
    if not tag.startswith('"'):  # a weak one (W/"…") does not promise the same bytes
        tag = headers.get("Last-Modified", "")
    return tag.encode("latin-1", "replace").decode("latin-1")


def _content_range(response: aiohttp.ClientResponse) -> tuple[int | None, int | None]:
    """The first byte, and how many the file has in all, where the answer says so."""
    value = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/([0-9]{1,18}|\*)", value.strip())
    first, total = match.groups() if match else (None, None)
    return int(first) if first else None, int(total) if total and total != "*" else None


def _fetch_and_unpack(url: str, part: _Part, unpack: Callable[[], None], retries: int, pause: float) -> None:
    """What fits no longer together after it was resumed is fetched anew, once."""
    for again in (True, False):
        asyncio.run(_fetch_archive(url, part, retries, pause))
        try:
            unpack()
        except CocosegError as error:
            part.discard()
            if not (again and part.resumed and isinstance(error, _DamagedError)):
                raise
            log.warning("%s; it was fetched in parts, so now it is fetched anew", error)
        else:
            part.discard()
            return


async def _fetch_archive(url: str, part: _Part, retries: int, pause: float) -> None:
    """Bring `part` to its full size.

    Raises:
        CocosegError: names the url.
    """
    with Progress(part.path.name.removesuffix(".part"), unit="B") as progress:
        async with open_session(1) as session:
            client = Client(session, retries, pause)
            farthest = part.size()

            async def attempt() -> None:
                nonlocal farthest
                try:
                    await _archive_attempt(client, url, part, progress)
                except RetryError as error:
                    # One that gets on is not giving up: the retries are counted anew.
                    error.advanced = part.size() > farthest + MIB
                    farthest = max(farthest, part.size())
                    raise

            try:
                await client.persist(attempt, shown(url), logging.INFO)
            except FinalError as error:
                if part.size() > ANNOTATIONS_LIMIT:  # else it waits for the next run
                    part.discard()
                raise CocosegError(f"{shown(url)} can't be fetched: {error}") from error
            except OSError as error:
                error.filename = error.filename or str(part.path)
                raise


async def _archive_attempt(client: Client, url: str, part: _Part, progress: Progress) -> None:
    conditions = part.conditions()
    async with client.get(url, conditions, accept=(200, 206, 416) if conditions else (200,)) as response:
        if response.status != 416:
            part.begin(response)
            done, length = part.size(), response.content_length
            progress.expect(done, None if length is None else done + length)
            with part.path.open("ab") as file:
                await save(response, file, ANNOTATIONS_LIMIT, progress)
        part.check_complete(response)


def _take(part: Path, url: str, annotation_files: Sequence[Path]) -> None:
    """The file itself: whole only if it is JSON, because a length is not always sent with it."""
    try:
        msgspec.json.decode(part.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _DamagedError(f"{url} is no JSON object ({error})") from error
    part.replace(annotation_files[0])


def _extract(archive: Path, url: str, annotation_files: Sequence[Path]) -> None:
    """Take these members out of the archive, each whole or not at all.

    Raises:
        CocosegError: names url and member.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for path in annotation_files:
                log.info("%s: extracting", path)
                with opened.open(_member(opened, f"annotations/{path.name}", url)) as source:
                    _write(source, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, OSError) as error:
        if isinstance(error, CocosegError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise  # the disk's; zipfile seeks to wherever a damaged archive says, which is EINVAL
        raise _DamagedError(f"{url} is no zip archive, or damaged ({error})") from error
    except RuntimeError as error:  # encrypted, or compressed by a method that Python lacks
        raise CocosegError(f"{url}: its content can't be read ({error})") from error


def _member(archive: zipfile.ZipFile, name: str, url: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(name)
    except KeyError:
        names = archive.namelist()
        listed = ", ".join(map(ascii, names[:10])) + (f" and {len(names) - 10} more" if names[10:] else "")
        raise CocosegError(f"{url}: no {name} in it, but {listed or 'nothing'}") from None
    if info.file_size > ANNOTATIONS_LIMIT:  # no more than this is ever read, whatever is stored
        raise CocosegError(f"{url}: {name} has {info.file_size} bytes; {ANNOTATIONS_LIMIT} are allowed")
    return info


def _write(source: BinaryIO, path: Path) -> None:
    """Not by `whole_file`: under a name that is always the same, what a kill leaves is written over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(source, file, MIB)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
