"""Predictions in COCO's results format, one run-length encoded mask per image and class.

https://cocodataset.org/#format-results (instance segmentation).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from pycocotools import mask as rle

from cocoseg.errors import count_of
from cocoseg.files import whole_file
from cocoseg.images.exif import turn_mask
from cocoseg.images.image_files import read_orientation
from cocoseg.inference.find_images import ImageFile
from cocoseg.inference.results import Results
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.coco_file import Image
from cocoseg.workers import available_cores

log = logging.getLogger(__name__)

RESULTS = "coco_results.json"
AT_A_TIME = 64  # images whose entries are in memory

Entries = list[dict[str, Any]]
T = TypeVar("T")


def write_coco_results(images: Sequence[ImageFile], ids: dict[str, int], results: Results) -> None:
    """Write `coco_results.json` for images whose masks exist.

    Args:
        ids: image id by `ImageFile.name`; images without one are left out, with a warning.
    """
    listed = [image for image in images if image.name in ids]
    if len(listed) < len(images):
        log.warning("annotations: the file does not list %d of the images", len(images) - len(listed))
    turned: list[str] = []
    others: list[str] = []

    def entries(image: ImageFile) -> Entries:
        mask = results.encoding.read(results.path(image.result_name))
        if image.listed == mask.shape != mask.shape[::-1]:  # height and width are swapped
            mask = turn_mask(mask, read_orientation(image.path), back=True)
            turned.append(image.name)
        if image.listed not in (None, mask.shape[::-1]):
            others.append(image.name)
        return entries_of(mask, ids[image.name], image.name, results.encoding.labels)

    with whole_file(results.output / RESULTS) as part, part.open("wb") as file:
        write_array(file, entries_of_all(entries, listed))
    for names, what in (
        (sorted(set(turned) - set(others)), "width and height as stored, and the results are turned back"),
        (others, "another size than they have, so that scores can't be computed"),
    ):
        if names:
            count = count_of(len(names), "image")
            log.warning("annotations: for %s (%s) the file gives %s", count, min(names), what)


def entries_of_all(entries: Callable[[T], Entries], images: Sequence[T]) -> Iterator[dict[str, Any]]:
    """Yield the entries of images in order. Threads make them, for `AT_A_TIME` images at a time."""
    with ThreadPoolExecutor(available_cores()) as pool:
        for first in range(0, len(images), AT_A_TIME):
            yield from chain.from_iterable(pool.map(entries, images[first : first + AT_A_TIME]))


def write_array(file: BinaryIO, entries: Iterable[dict[str, Any]]) -> None:
    """Write objects as a JSON array, each as soon as it comes, on a line of its own."""
    separator = b"[\n"
    for entry in entries:
        file.write(separator + msgspec.json.encode(entry))
        separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else b"[]\n")


def category_ids(labels: LabelMap) -> list[int]:
    """Category id of each class index. If a class stands for several categories, all are class indices."""
    ids = [label.category_id for label in labels.classes[1:]]
    return list(range(len(labels))) if None in ids else [0, *(one for one in ids if one is not None)]


def entries_of(mask: np.ndarray, image_id: int, file_name: str, labels: LabelMap) -> Entries:
    """Make an entry for each class in a mask, (H, W) uint8 class indices, except background.

    The format requires a score, which is 1. `file_name` is an addition that readers ignore.
    """
    ids, size = category_ids(labels), list(mask.shape)
    entries = []
    for index in np.flatnonzero(np.bincount(mask.ravel())).tolist():
        if index not in (0, IGNORE_INDEX):
            counts = rle.encode(np.asfortranarray(mask == index))["counts"].decode()
            entry: dict[str, Any] = {"image_id": image_id, "category_id": ids[index]}
            entry |= {"segmentation": {"size": size, "counts": counts}, "score": 1.0, "file_name": file_name}
            entries.append(entry)
    return entries


def listed_images(names: Sequence[str], images: Sequence[Image]) -> dict[str, Image]:
    """Find the images of these names in an annotation file, by path or else by file name."""
    by_path = {image.file_name: image for image in images}
    by_name: dict[str, Image | None] = {}  # None: several images have the name
    for image in images:
        name = PurePosixPath(image.file_name).name
        by_name[name] = None if name in by_name else image
    found = {name: by_path.get(name, by_name.get(PurePosixPath(name).name)) for name in names}
    return {name: image for name, image in found.items() if image is not None}
