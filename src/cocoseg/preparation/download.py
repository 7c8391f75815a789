"""Download of the annotation file, and of the chosen images only.

Files appear under their names when they are whole and checked. A run that was interrupted is resumed: images
that are there are not fetched again, an archive goes on at the byte where it stopped.
"""

import errno
import logging
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import locked, remove_parts, whole_file
from cocoseg.preparation.coco_file import Image, is_inside
from cocoseg.preparation.http_client import FetchError, HttpClient, parse_address, read_body, without_login
from cocoseg.preparation.image_files import check_image, missing_images
from cocoseg.progress import track

log = logging.getLogger(__name__)

MIB = 2**20
ANNOTATIONS_LIMIT = 4 * 2**30  # bytes of the archive, and of a file in it
DOWN_AFTER = 32  # images in a row without a connection, after which the server counts as down
# Errors of zipfile at damaged archives, and at methods of compression or encryption that it lacks.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, ValueError, OSError, RuntimeError)


@dataclass(frozen=True)
class Failure:
    """An image that could not be fetched."""

    file_name: str
    url: str  # empty if the annotation file names none
    reason: str


def fetch_images(
    images: Sequence[Image],
    image_dir: Path,
    *,
    base_url: str | None = None,
    connections: int = 16,
    max_bytes: int = 64 * MIB,
    retries: int = 5,
    pause: float = 1.0,
) -> list[Failure]:
    """Fetch those of `images` that are not in `image_dir`; existing files are left alone.

    An image counts once it can be read to its last byte and has the size that the annotation file says.

    Args:
        images: some of the images of an annotation file.
        image_dir: gets them under their file names, subfolders kept.
        base_url: prefix of the file names; None for each image's own `coco_url`.
        connections: at most so many at a time.
        max_bytes: of one image; larger ones fail.
        retries: further attempts after server errors, broken connections, timeouts and damaged bodies.
        pause: seconds, see HttpClient.

    Returns:
        what could not be fetched, in the order of `images`.

    Raises:
        CocosegError: the server can't be reached, a file can't be written, or its name leads out of
            `image_dir`.
    """
    if base_url is not None:
        parse_address(base_url)
    for image in images:
        if not is_inside(image.file_name):  # checked here too: this is where it would be written to
            raise CocosegError(f"the file name {image.file_name!r} leads out of {image_dir}")
    begin = time.monotonic()
    with locked(image_dir):
        missing = missing_images(images, image_dir)  # another process may have fetched some meanwhile
        client = HttpClient(connections, retries, pause)
        try:
            received, failures = _fetch_all(client, missing, image_dir, base_url, max_bytes, connections)
        finally:
            for folder in {(image_dir / image.file_name).parent for image in missing}:
                remove_parts(folder)  # a killed run may have left some, too
    log.info(
        "%s: %d images fetched (%.0f MB) in %.0f s, %d failed",
        image_dir,
        len(missing) - len(failures),
        received / 1e6,
        time.monotonic() - begin,
        len(failures),
    )
    return [failures[image.id] for image in missing if image.id in failures]


def _fetch_all(
    client: HttpClient,
    images: Sequence[Image],
    image_dir: Path,
    base_url: str | None,
    max_bytes: int,
    connections: int,
) -> tuple[int, dict[int, Failure]]:
    """Fetch images in threads; return the bytes received, and failures by image id."""

    def fetch(image: Image) -> tuple[Image, int | FetchError]:
        try:
            return image, _fetch_image(client, image, image_dir, _address_of(image, base_url), max_bytes)
        except FetchError as error:
            return image, error

    received = unreachable = 0
    failures = {}
    # No pool of concurrent.futures: Python waits for its threads at exit, so Ctrl-C for a silent server.
    with ThreadPool(connections) as pool:
        outcomes = pool.imap_unordered(fetch, images)
        for image, outcome in track(outcomes, total=len(images), what="images"):
            if isinstance(outcome, int):
                received += outcome
                unreachable = 0
                continue
            url = without_login(_address_of(image, base_url) or "")
            failures[image.id] = Failure(image.file_name, url, str(outcome))
            unreachable = unreachable + 1 if outcome.unreachable else 0
            if unreachable == min(DOWN_AFTER, len(images)):
                raise CocosegError(
                    f"{parse_address(url).host} can't be reached ({outcome}); check the network, "
                    "or set data.images_url to a mirror"
                )
    return received, failures


def _fetch_image(client: HttpClient, image: Image, image_dir: Path, url: str | None, max_bytes: int) -> int:
    """Fetch and check one image; return its size in bytes."""
    if url is None:
        raise FetchError("the annotation file has no coco_url for it; set data.images_url")

    def attempt() -> int:
        with client.get(url) as response, whole_file(image_dir / image.file_name) as part:
            with part.open("wb") as file:
                received = sum(map(file.write, read_body(response, max_bytes)))
            try:
                check_image(part, image.width, image.height)
            except CocosegError as error:
                raise FetchError(str(error).removeprefix(f"{part}: "), retry=True) from error
            return received

    return client.persist(attempt)


def _address_of(image: Image, base_url: str | None) -> str | None:
    if base_url is not None:
        return f"{base_url.rstrip('/')}/{quote(image.file_name)}"
    return image.coco_url or None


class _ContentError(CocosegError):
    """A body that is not the file asked for."""


def fetch_annotations(url: str, *annotation_files: Path, retries: int = 5, pause: float = 1.0) -> None:
    """Fetch COCO's annotation archive and extract these files of it; existing files are left alone.

    An archive that was cut off is resumed, by the next run too; its checksums tell whether the parts belong
    together, else it is fetched anew. A .json file has no checksum and is always fetched anew.

    Args:
        url: of a zip with the members annotations/<name of each file>; or, ending in .json, of the one file.
        annotation_files: where to put them.
        retries: further attempts without progress.
        pause: seconds, see HttpClient.

    Raises:
        CocosegError: it can't be fetched, is no such archive or too large, or the disk is full.
    """
    url_path = parse_address(url).path or ""
    is_archive = not url_path.endswith(".json")
    if len(annotation_files) > 1 and not is_archive:
        raise CocosegError(f"{without_login(url)} is one file, not an archive of {len(annotation_files)}")
    folder = annotation_files[0].parent
    with locked(folder):
        missing = [path for path in annotation_files if not path.is_file()]
        if not missing:
            return  # another process has fetched them meanwhile
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(url_path).name)[-100:]
        part = folder / f"{name}.part"
        client = HttpClient(1, retries, pause)
        for first in (True, False):
            resumed = _fetch_file(client, url, part, resume=is_archive)
            try:
                (_extract if is_archive else _take)(part, without_login(url), missing)
                break
            except _ContentError as error:
                part.unlink()
                if not (first and resumed):
                    raise
                log.warning("%s; it was fetched in parts, so now it is fetched anew", error)
        part.unlink(missing_ok=True)


def _fetch_file(client: HttpClient, url: str, part: Path, *, resume: bool) -> bool:
    """Bring `part` to its full size; return whether its bytes are from several answers."""
    resumed = False

    def size() -> int:
        return part.stat().st_size if part.exists() else 0

    def attempt() -> None:
        nonlocal resumed
        begin = size() if resume else 0
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        with client.get(url, headers, accept=(200, 206, 416) if begin else (200,)) as response:
            resumed = response.status != 200
            content_range = response.headers.get("Content-Range", "")
            if content_range == f"bytes */{begin}":  # nothing is missing
                return
            if resumed and not content_range.startswith(f"bytes {begin}-"):
                part.unlink()
                raise FetchError("the server sent another part than the one asked for", retry=True)
            body = read_body(response, ANNOTATIONS_LIMIT - (begin if resumed else 0))
            with part.open("ab" if resumed else "wb") as file:
                for chunk in track(body, total=response.length_remaining, what=part.stem, size=len):
                    file.write(chunk)

    while True:
        before = size()
        try:
            client.persist(attempt)
            return resumed
        except FetchError as error:
            if error.retry and size() > before + MIB:
                continue  # a bad connection, but it gets on
            if not error.retry:
                part.unlink(missing_ok=True)  # else the next run goes on with it
            raise CocosegError(f"{without_login(url)} can't be fetched: {error}") from error
        except OSError as error:
            raise CocosegError(f"{part}: can't be written ({error.strerror})") from error


def _take(part: Path, url: str, annotation_files: Sequence[Path]) -> None:
    """Take the file itself, if it is JSON to its end: its length is not always sent with it."""
    try:
        msgspec.json.decode(part.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _ContentError(f"{url} is no JSON object ({error})") from error
    part.replace(annotation_files[0])


def _extract(archive: Path, url: str, annotation_files: Sequence[Path]) -> None:
    """Extract these members of the archive, each whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for path in annotation_files:
                log.info("%s: extracting", path)
                with opened.open(_member(opened, f"annotations/{path.name}", url)) as source:
                    remove_parts(path.parent)  # a killed run may have left some
                    with whole_file(path) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(source, file, MIB)
    except CocosegError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the disk's error; EINVAL comes from seeking to wherever a damaged archive says
        raise _ContentError(f"{url} is no zip archive, or damaged or encrypted ({error})") from error


def _member(archive: zipfile.ZipFile, name: str, url: str) -> zipfile.ZipInfo:
    try:
        info = archive.getinfo(name)
    except KeyError:
        names = archive.namelist()
        listed = ", ".join(map(ascii, names[:10])) + (f" and {len(names) - 10} more" if names[10:] else "")
        raise _ContentError(f"{url}: no {name} in it, but {listed or 'nothing'}") from None
    if info.file_size > ANNOTATIONS_LIMIT:  # zipfile reads no more than this size
        raise _ContentError(f"{url}: {name} has {info.file_size} bytes; {ANNOTATIONS_LIMIT} are allowed")
    return info
