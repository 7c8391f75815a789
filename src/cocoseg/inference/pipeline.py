"""Images from file to file: worker processes decode, the network predicts, threads write.

The number of images and of pixels in memory is bounded, and large ones are decoded one at a time.
"""

import logging
import math
import os
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cocoseg.errors import CocosegError, count_of
from cocoseg.images.exif import upright_by
from cocoseg.images.image_files import read_with_faults, reading_of, size_of
from cocoseg.inference.find_images import ImageFile
from cocoseg.inference.manifest import Entry, relative_path
from cocoseg.inference.predictor import InputResize, Pending, Predictor
from cocoseg.inference.probabilities import require_room
from cocoseg.inference.results import Results
from cocoseg.networks.device import is_out_of_memory
from cocoseg.networks.pixels import to_tensor
from cocoseg.workers import leave_group

log = logging.getLogger(__name__)

LARGE = 2**25  # pixels of an image and its network input together; larger images are decoded one at a time
FORWARD_PIXELS = 2**22  # pixels of the network's input in one forward pass
FIRST = 5  # images that a warning names
AHEAD = 32  # images that are decoded ahead; one per worker process if there are more of these
WAITING = 4  # predictions per thread that may wait to be written
WAITING_BYTES = 2**28  # bytes that they may hold together; a single larger one may wait, too


@dataclass
class Decoded:
    """An image that was read.

    Attributes:
        entry: its description, without `pixels`.
        input: the network's input (H, W, 3) uint8. It is an array, because a worker process would pass a
            tensor through shared memory, which containers limit, and with an open file.
        canvas: (h, w, 3) uint8 to draw on, or None.
        faults: parts of the file that are not read.
    """

    entry: Entry
    input: np.ndarray
    canvas: np.ndarray | None
    faults: list[str]


@dataclass
class _Images(Dataset[Decoded | str | int]):
    """Decodes images. An item is the image; a sentence if it can't be read; its index if it is large."""

    images: Sequence[ImageFile]
    resize: InputResize
    results: Results
    exif: str | None
    bits: int | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded | str | int:
        size = size_of(self.images[index].path)
        if size is not None and math.prod(size) + math.prod(self.resize.size(size[::-1])) > LARGE:
            return index
        return self.decode(index)

    def decode(self, index: int) -> Decoded | str:
        image = self.images[index]
        try:
            return self._decode(image)
        except UnicodeEncodeError:
            shown = os.fsencode(image.path).decode(errors="backslashreplace")
            return f"{shown}: its name is not UTF-8; rename it"
        except (CocosegError, OSError) as error:
            return str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{image.path}: not enough memory to read it"

    def _decode(self, image: ImageFile) -> Decoded:
        path = relative_path(image.path, self.results.output)
        path.encode()  # JSON and HTML are UTF-8
        stat = image.path.stat()
        by_size = None if image.listed is None else reading_of(image.path, *image.listed)
        upright = upright_by(self.exif, by_size)
        pixels, faults = read_with_faults(image.path, upright=upright, bits=self.bits)
        entry = Entry(path, image.result_name, stat.st_size, stat.st_mtime_ns, pixels.height, pixels.width)
        if self.results.probabilities == "all":
            classes = len(self.results.encoding.labels)
            require_room((pixels.height, pixels.width), classes, prefix=f"{image.path}: ")
        tensor = self.resize(to_tensor(pixels)[None])[0]
        array = tensor.permute(1, 2, 0).contiguous().numpy()
        return Decoded(entry, array, self.results.canvas(pixels), faults)


def predict_images(
    images: Sequence[ImageFile], predictor: Predictor, results: Results, batch_size: int, workers: int
) -> Generator[Entry | None, None, None]:
    """Predict images and write their results. Warn at the end of parts of their files that are not read.

    Args:
        batch_size: images per batch.
        workers: number of processes that decode, and of threads that write.

    Yields:
        The entries of the images, in any order. None for an image that can't be read, after a warning.

    Raises:
        CocosegError: results can't be written.
    """
    writing: deque[tuple[int, Future[Entry]]] = deque()  # number of bytes, prediction
    writers = ThreadPoolExecutor(workers)  # its threads start after the processes that decode
    try:
        model, faults = predictor.model, defaultdict(list)
        files = _Images(images, predictor.resize, results, model.exif, model.bits)
        for batch in _read(files, batch_size, workers):
            for problem in (item for item in batch if isinstance(item, str)):
                log.warning("left out: %s", problem)
                yield None
            readable = [item for item in batch if isinstance(item, Decoded)]
            for decoded in readable:
                for fault in decoded.faults:
                    faults[fault].append(decoded.entry.name)
            for decoded, pending in _predict(predictor, readable):
                future = writers.submit(_write, results, decoded, pending)
                writing.append((pending.nbytes, future))
                while writing and (writing[0][1].done() or _is_full(writing, workers)):
                    yield writing.popleft()[1].result()
        while writing:
            yield writing.popleft()[1].result()
        for fault, names in sorted(faults.items()):
            first = ", ".join(names[:FIRST]) + ", …" * (len(names) > FIRST)
            log.warning("%s: %s (%s)", count_of(len(names), "image"), fault, first)
    finally:
        writers.shutdown(cancel_futures=True)  # files that are being written become whole


def _write(results: Results, decoded: Decoded, pending: Pending) -> Entry:
    return results.write(decoded.entry, pending.mask().cpu().numpy(), decoded.canvas, pending.probabilities)


def _is_full(writing: Sequence[tuple[int, Future[Entry]]], workers: int) -> bool:
    """Tell whether the predictions that wait to be written take all the memory that they may take."""
    held = sum(size for size, _ in writing)
    return len(writing) > WAITING * workers or (len(writing) > 1 and held > WAITING_BYTES)


def _read(images: _Images, batch_size: int, workers: int) -> Iterator[list[Decoded | str | int]]:
    """Yield batches that worker processes decode. Large images come alone, decoded in this process."""
    batches = math.ceil(len(images) / batch_size)
    workers = 0 if batches <= 1 else min(workers, batches)  # for one batch their start would take too long
    loader = DataLoader(
        images,
        max(1, min(batch_size, AHEAD // max(1, workers))),
        num_workers=workers,
        collate_fn=list,
        prefetch_factor=1 if workers else None,
        worker_init_fn=leave_group,
    )
    items = chain.from_iterable(loader)
    while batch := list(islice(items, batch_size)):
        yield batch
        for index in batch:
            if isinstance(index, int):
                yield [images.decode(index)]


def _predict(predictor: Predictor, images: Sequence[Decoded]) -> Iterator[tuple[Decoded, Pending]]:
    """Yield images with their predictions; inputs of equal size share a forward pass."""

    def shape(decoded: Decoded) -> tuple[int, ...]:
        return decoded.input.shape

    for (height, width, _), group in groupby(sorted(images, key=shape), key=shape):
        while part := list(islice(group, max(1, FORWARD_PIXELS // (height * width)))):
            inputs = torch.from_numpy(np.stack([decoded.input for decoded in part])).permute(0, 3, 1, 2)
            predictions = predictor.masks(inputs, [(one.entry.height, one.entry.width) for one in part])
            yield from zip(part, predictions, strict=True)
