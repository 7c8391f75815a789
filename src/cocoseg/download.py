"""Only the chosen images, from the web.

An image on its way lies in a temporary file beside its place and gets its name once it is whole and
checked. These files have names of their own, so that the next run removes what a killed one left behind; one
process at a time downloads into a folder, so that none removes another's.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from cocoseg.coco import Image, is_inside
from cocoseg.errors import CocosegError
from cocoseg.files import alone_in
from cocoseg.images import check_image, missing_images
from cocoseg.progress import Progress
from cocoseg.web import Client, FinalError, RetryError, checked_url, open_session, parse_url, save, shown

log = logging.getLogger(__name__)

AHEAD = 4  # images under way per connection: those that pause or are being checked leave no connection idle
SURELY_DOWN = 20  # images in a row without a connection, when there never was one
PROBABLY_DOWN = 200  # … when there was: two minutes and more at the default settings
# The file system refuses this one name; any other error of the disk would meet every image.
NAME_ERRORS = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}


@dataclass(frozen=True)
class Failure:
    """An image that could not be fetched."""

    file_name: str
    url: str  # empty where the annotation file names none
    reason: str


def fetch_images(
    images: Sequence[Image],
    image_dir: Path,
    *,
    base_url: str | None = None,
    connections: int = 16,
    max_bytes: int = 64 * 2**20,
    retries: int = 5,
    pause: float = 1.0,
) -> list[Failure]:
    """Fetch those of `images` that are not in `image_dir`; a file that is there is left alone.

    An image counts once it can be read to its last byte and has the size that the annotation file says.

    Args:
        images: some of the images of an annotation file.
        image_dir: gets them under their file names, subfolders kept.
        base_url: what file names are appended to; None for each image's own `coco_url`.
        connections: at most so many at a time.
        max_bytes: of one image; larger ones fail.
        retries: how often to try again after server errors, resets, timeouts and damaged bodies.
        pause: seconds before the first retry, doubled each time.

    Returns:
        what could not be fetched, in the order of `images`.

    Raises:
        CocosegError: no server can be reached, or a file name leads out of `image_dir`.
        OSError: the disk is full, or the like.
    """
    if base_url is not None:
        checked_url(base_url)
    for image in images:
        _place(image_dir, image.file_name)
    missing = missing_images(images, image_dir)
    if not missing:
        return []
    with alone_in(image_dir):
        missing = missing_images(missing, image_dir)  # the process waited for may have fetched some
        begin = time.monotonic()
        try:
            with Progress("images", unit=" images", total=len(missing)) as progress:
                fetcher = _ImageFetcher(image_dir, base_url, max_bytes, progress)
                failures = asyncio.run(fetcher.run(missing, connections, retries, pause))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # a TaskGroup wraps even a single one
        finally:
            _sweep(missing, image_dir)
    log.info(
        "%s: %d images fetched (%.0f MB) in %.0f s, %d failed",
        image_dir,
        len(missing) - len(failures),
        progress.bytes / 1e6,
        time.monotonic() - begin,
        len(failures),
    )
    return [failures[image.id] for image in missing if image.id in failures]


class _ImageFetcher:
    """The images under way, and what became of them."""

    def __init__(self, image_dir: Path, base_url: str | None, max_bytes: int, progress: Progress):
        self._image_dir = image_dir
        self._base_url = base_url
        self._max_bytes = max_bytes
        self._progress = progress
        self._failures: dict[int, Failure] = {}
        self._unreachable = 0  # in a row
        self._client: Client

    async def run(
        self, images: Sequence[Image], connections: int, retries: int, pause: float
    ) -> dict[int, Failure]:
        """Fetch all of them; the failures by image id."""
        queue = iter(images)
        async with open_session(connections) as session, asyncio.TaskGroup() as group:
            self._client = Client(session, retries, pause)
            for _ in range(min(AHEAD * connections, len(images))):
                group.create_task(self._work(queue, len(images)))
        return self._failures

    async def _work(self, queue: Iterator[Image], total: int) -> None:
        for image in queue:  # shared: each worker takes the next
            url = _url_of(image, self._base_url)
            if url is None:
                reason = "the annotation file has no coco_url for it; set data.images_url"
                self._failures[image.id] = Failure(image.file_name, "", reason)
            else:
                error = await self._fetch(image, url)
                if error is not None:
                    self._failures[image.id] = Failure(image.file_name, shown(url), str(error))
                self._stop_if_down(url, error, total)
            self._progress.finished()

    async def _fetch(self, image: Image, url: str) -> FinalError | None:
        """Put the image into its place, or say why not."""
        target = _place(self._image_dir, image.file_name)
        part = _part_of(target, image)
        try:
            await self._client.persist(
                lambda: self._attempt(image, url, part, target), image.file_name, logging.DEBUG
            )
        except FinalError as error:
            return error
        except OSError as error:
            if error.errno in NAME_ERRORS:
                return FinalError(f"it can't be written: {error.strerror}")
            error.filename = error.filename or str(target)  # a failed write doesn't say of what
            raise
        finally:
            with suppress(OSError):
                part.unlink()
        return None

    async def _attempt(self, image: Image, url: str, part: Path, target: Path) -> None:
        async with self._client.get(url) as response:
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                await save(response, file, self._max_bytes, self._progress)
        await asyncio.to_thread(_accept, part, target, image)

    def _stop_if_down(self, url: str, error: FinalError | None, total: int) -> None:
        """End all where nothing can be reached, rather than fail with thousands of images one by one."""
        self._unreachable = self._unreachable + 1 if error is not None and error.unreachable else 0
        enough = PROBABLY_DOWN if self._client.answered else min(SURELY_DOWN, total)
        if self._unreachable >= enough:
            raise CocosegError(
                f"{parse_url(url).host} can't be reached ({error}); check the network, "
                "or set data.images_url to a mirror"
            )


def _place(image_dir: Path, file_name: str) -> Path:
    """Where an image belongs; `coco.read` refuses bad names too, but here they would be written to."""
    if not is_inside(file_name):
        raise CocosegError(f"the file name {file_name!r} leads out of {image_dir}")
    return image_dir / file_name


def _part_of(target: Path, image: Image) -> Path:
    return target.parent / f".download-{image.id}.part"  # short: the name itself may be as long as it can be


def _url_of(image: Image, base_url: str | None) -> str | None:
    if base_url is not None:
        return f"{base_url.rstrip('/')}/{quote(image.file_name)}"
    return image.coco_url or None


def _accept(part: Path, target: Path, image: Image) -> None:
    """Give a fetched image its name, if it is one. For threads."""
    try:
        check_image(part, image.width, image.height)
    except CocosegError as error:
        # The server's own file is damaged, after two more attempts.
        raise RetryError(str(error).removeprefix(f"{part}: "), at_most=2) from error
    part.replace(target)


def _sweep(images: Iterable[Image], image_dir: Path) -> None:
    """Remove the temporary files in the folders of these images, a killed run's too."""
    for folder in {(image_dir / image.file_name).parent for image in images}:
        for part in folder.glob(".download-*.part"):
            with suppress(OSError):
                part.unlink()
