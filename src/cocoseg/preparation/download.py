"""Download of the annotation file, and of the chosen images only.

A file appears under its name once it is complete and checked. After an interruption the next run goes on: it
fetches the images that are missing, and the rest of an archive from the byte where it ended.
"""

import logging
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote

import msgspec

from cocoseg.errors import CocosegError, count_of
from cocoseg.files import locked, make_folders, remove_parts, whole_file, writing_to
from cocoseg.images.image_files import check_image, has_content
from cocoseg.preparation.coco_file import Image, is_inside
from cocoseg.preparation.http_client import (
    CONNECTIONS,
    MIB,
    FetchError,
    HttpClient,
    UnreachableError,
    parse_address,
)
from cocoseg.progress import track

log = logging.getLogger(__name__)

LOCK = ".download.lock"  # not LOCK of files.py, which the preparation may hold in the same folder
ANNOTATIONS_LIMIT = 4 * 2**30  # bytes of the archive, and of a file in it
ANEW = "delete that file to fetch it again"


@dataclass(frozen=True, order=True)
class Failure:
    """An image that could not be fetched."""

    file_name: str
    url: str  # empty if the annotation file names none
    reason: str


def fetch_images(
    images: Sequence[Image], image_dir: Path, *, base_url: str | None = None, max_bytes: int = 64 * MIB
) -> list[Failure]:
    """Fetch the images that are missing in `image_dir`. Returns those that could not be fetched.

    An image is accepted if it can be read to its last byte and has the size that the annotation file lists.

    Args:
        base_url: address that file names are appended to; None for each image's own `coco_url`.
        max_bytes: limit for an image; larger ones fail.

    Raises:
        CocosegError: `base_url` is no address, a file can't be written, or CONNECTIONS images in a row got no
            connection.
    """
    if base_url is not None:
        parse_address(base_url)
    for image in images:
        if not is_inside(image.file_name):  # checked again, because here it would be written to
            raise CocosegError(f"the file name {image.file_name!r} leads out of {image_dir}")
    with locked(image_dir, name=LOCK):
        # Another process may have fetched some meanwhile.
        missing = [image for image in images if not has_content(image_dir / image.file_name)]
        client = HttpClient()
        fetch = partial(_fetch_image, client, image_dir, base_url, max_bytes)
        try:
            # A pool of concurrent.futures would make Ctrl-C wait for a silent server. Threads of this one may
            # go on after the block, so the client is closed.
            with ThreadPool(CONNECTIONS) as pool:
                outcomes = track(pool.imap_unordered(fetch, missing), total=len(missing), what="images")
                failures = _collect_failures(outcomes, min(CONNECTIONS, len(missing)))
        finally:
            client.close()
            for folder in {(image_dir / image.file_name).parent for image in missing}:
                remove_parts(folder)  # a killed run may have left some, too
    fetched = count_of(len(missing) - len(failures), "image")
    log.info("%s: %s fetched, %d failed", image_dir, fetched, len(failures))
    return failures


def _collect_failures(
    outcomes: Iterable[tuple[Image, str, FetchError | None]], down_after: int
) -> list[Failure]:
    """Collect failures, sorted by file name. Give up once `down_after` images in a row got no connection."""
    failures = []
    unreachable = 0
    for image, url, error in outcomes:
        unreachable = unreachable + 1 if isinstance(error, UnreachableError) else 0
        if unreachable == down_after:
            raise CocosegError(f"{error}; check network and proxy, or set data.images_url to a mirror")
        if error is not None:
            failures.append(Failure(image.file_name, url, str(error)))
    return sorted(failures)


def _fetch_image(
    client: HttpClient, image_dir: Path, base_url: str | None, max_bytes: int, image: Image
) -> tuple[Image, str, FetchError | None]:
    """Fetch and check an image. Returns it with its address, and the error if it could not be fetched."""

    def check(part: Path) -> None:
        try:
            check_image(part, image.width, image.height)
        except CocosegError as error:
            raise FetchError(str(error).removeprefix(f"{part}: ")) from error

    url = image.coco_url or ""
    if base_url is not None:
        url = f"{base_url.rstrip('/')}/{quote(image.file_name)}"
    try:
        if not url:
            raise FetchError("the annotation file has no coco_url for it; set data.images_url")
        with whole_file(image_dir / image.file_name) as part:
            client.fetch(url, part, max_bytes, check)
    except FetchError as error:
        return image, url, error
    return image, url, None


def fetch_annotations(url: str, *annotation_files: Path) -> None:
    """Fetch COCO's annotation archive and extract these files from it. Existing files stay as they are.

    A download that was interrupted is resumed, by the next run too. The checksums of the archive show whether
    its parts belong together; if not, it is fetched again. A .json file has no checksum and is not resumed.

    Args:
        url: address of a zip that holds annotations/<name> for each file; or of a .json, the only file.

    Raises:
        CocosegError: it can't be fetched, is no such archive or too large, or the disk is full.
    """
    url_path = parse_address(url).path or ""
    is_archive = not url_path.endswith(".json")
    if len(annotation_files) > 1 and not is_archive:
        raise CocosegError(f"{url} is one file, not an archive of {len(annotation_files)}")
    folder = annotation_files[0].parent
    with ExitStack() as stack:
        with writing_to(folder):
            stack.callback(make_folders(folder))  # a download that fails leaves no empty folder
        stack.enter_context(locked(folder, name=LOCK))
        missing = [path for path in annotation_files if not path.is_file()]
        if not missing:
            return  # another process has fetched them meanwhile
        part = folder / (url_path.rpartition("/")[2] + ".part")
        accept = partial(_extract if is_archive else _accept, missing)
        try:
            HttpClient(progress=True).fetch(url, part, ANNOTATIONS_LIMIT, accept, resume=is_archive)
        except FetchError as error:
            raise CocosegError(f"{url} can't be fetched: {error}") from error
        except OSError as error:
            raise CocosegError(f"{part}: can't be written ({error.strerror})") from error
        part.unlink(missing_ok=True)


def _accept(annotation_files: Sequence[Path], part: Path) -> None:
    """Accept the file if it is JSON to its end; servers do not always send a length to compare with."""
    try:
        msgspec.json.decode(part.read_bytes(), type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FetchError(f"it is no JSON object ({error})") from error
    part.replace(annotation_files[0])


def _extract(annotation_files: Sequence[Path], archive: Path) -> None:
    """Extract these files from the archive, each whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            for path in annotation_files:
                name = f"annotations/{path.name}"
                if name not in opened.namelist():
                    raise CocosegError(f"{archive}: no {name} in it, but {opened.namelist()[:10]!a}; {ANEW}")
                if opened.getinfo(name).file_size > ANNOTATIONS_LIMIT:  # zipfile reads no more than this size
                    raise CocosegError(f"{archive}: {name} is larger than {ANNOTATIONS_LIMIT} bytes; {ANEW}")
                log.info("%s: extracting", path)
                with opened.open(name) as source:
                    remove_parts(path.parent)  # a killed run may have left some
                    with whole_file(path) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(source, file, MIB)
    except CocosegError:
        raise
    except Exception as error:  # zipfile raises about anything at damaged archives
        raise FetchError(f"it is no zip archive, or damaged or encrypted ({error})") from error
