"""Images from file to file: worker processes decode, the network predicts, threads write.

DataLoader (decode, resize) -> batches -> network and arg-max -> mask, overlay and thumbnails (threads).
The number of images and of pixels in memory is bounded.
"""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from cocoseg.errors import CocosegError
from cocoseg.figures.gallery import FOLDER, has_thumbnails, write_thumbnails
from cocoseg.figures.overlay import overlay, with_legend
from cocoseg.files import is_for_its_name, write_bytes
from cocoseg.inference.find_images import ImageFile, relative_path
from cocoseg.inference.manifest import Entry
from cocoseg.inference.predictor import InputResize, Predictor
from cocoseg.networks.device import is_out_of_memory
from cocoseg.networks.pixels import to_tensor
from cocoseg.preparation.image_files import read_upright, size_of
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.resizing import resize_mask
from cocoseg.workers import end_with_parent, leave_group

LARGE = 2**25  # pixels of an image and its network inputs; larger ones are decoded one at a time, at the end
FORWARD_PIXELS = 2**22  # pixels of the network's input in one forward pass
WRITE_PIXELS = 2**26  # pixels of masks that wait to be written
LONGEST = 2048  # pixels: longer side of an overlay
MASKS, OVERLAYS = "masks", "overlays"  # folders below the output
FEW = 8  # images that are decoded in this process: others would start too late


@dataclass(frozen=True)
class ResultPaths:
    """Paths of the results of an image.

    Attributes:
        output: folder of all results.
        overlay, gallery: whether overlays, and thumbnails for the gallery, are written.
    """

    output: Path
    overlay: bool
    gallery: bool

    @property
    def folders(self) -> list[Path]:
        """Folders of the results that are wanted."""
        wanted = {MASKS: True, OVERLAYS: self.overlay, FOLDER: self.gallery}
        return [self.output / folder for folder, is_wanted in wanted.items() if is_wanted]

    def mask(self, name: str) -> Path:
        return self.output / MASKS / f"{name}.png"

    def overlaid(self, name: str) -> Path:
        return self.output / OVERLAYS / f"{name}.jpg"

    def exist(self, name: str) -> bool:
        """Whether all results that are wanted were written under a name."""
        return (
            self.mask(name).is_file()
            and not (self.overlay and not self.overlaid(name).is_file())
            and not (self.gallery and not has_thumbnails(self.output, name))
        )


@dataclass
class Decoded:
    """An image that was read.

    Attributes:
        image: its file.
        input: the network's input (H, W, 3) uint8. An array, because worker processes would pass
            tensors through shared memory, which containers limit, with an open file for each.
        size: height and width in pixels, upright.
        canvas: (h, w, 3) uint8 to draw on, its sides LONGEST at most; None where nothing is drawn.
        file_bytes, changed_ns: size and modification time of the file.
    """

    image: ImageFile
    input: np.ndarray | None
    size: tuple[int, int]
    canvas: np.ndarray | None
    file_bytes: int
    changed_ns: int


@dataclass
class _Images(Dataset[Decoded | str | None]):
    """Decodes images: an item is the image, the sentence why it can't be read, or None for a large one.

    Args:
        images: their files.
        resize: makes the network's input.
        draws: whether a canvas is needed.
    """

    images: Sequence[ImageFile]
    resize: InputResize
    draws: bool

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded | str | None:
        size = size_of(self.images[index].path)
        if size is not None and math.prod(size) + math.prod(self.resize.size(size[::-1])) > LARGE:
            return None
        return self.decode(self.images[index])

    def decode(self, image: ImageFile) -> Decoded | str:
        try:
            return self._decode(image)
        except (CocosegError, OSError) as error:
            return str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return f"{image.path}: not enough memory to read it"

    def _decode(self, image: ImageFile) -> Decoded:
        stat = image.path.stat()
        pixels = read_upright(image.path)
        size = pixels.height, pixels.width
        input = self.resize(to_tensor(pixels)[None])[0].permute(1, 2, 0).contiguous().numpy()
        canvas = None
        if self.draws:
            pixels.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.BOX)
            canvas = np.asarray(pixels)
        return Decoded(image, input, size, canvas, stat.st_size, stat.st_mtime_ns)


@dataclass
class Pipeline:
    """Reads images, predicts and writes.

    Args:
        predictor: the model and how it is applied.
        encoding: encoding of the masks.
        paths: where results go.
        batch_size: images per batch.
        workers: number of processes that decode, and of threads that write.
    """

    predictor: Predictor
    encoding: MaskEncoding
    paths: ResultPaths
    batch_size: int
    workers: int

    def run(self, images: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, Entry | str]]:
        """Yield the outcome of each image, in any order: its entry, or the sentence why it is left out.

        Raises:
            CocosegError: results can't be written, or memory ran out.
        """
        writing: deque[tuple[Decoded, Future[Entry]]] = deque()
        writers = ThreadPoolExecutor(self.workers)
        try:
            with closing(self._read(images)) as batches:  # its processes start before any thread does
                for batch in batches:
                    yield from ((image, item) for image, item in batch if isinstance(item, str))
                    for decoded, mask in self._predict([i for _, i in batch if isinstance(i, Decoded)]):
                        writing.append((decoded, writers.submit(self._write, decoded, mask)))
                        while writing and (writing[0][1].done() or _is_full(writing)):
                            yield _outcome(*writing.popleft())
            while writing:
                yield _outcome(*writing.popleft())
        finally:
            writers.shutdown(cancel_futures=True)  # files that are being written become whole

    def _read(self, images: Sequence[ImageFile]) -> Iterator[list[tuple[ImageFile, Decoded | str]]]:
        """Yield batches that worker processes decode, then the large images one by one, decoded here."""
        dataset = _Images(images, self.predictor.resize, self.paths.overlay or self.paths.gallery)
        workers = 0 if len(images) <= FEW else min(self.workers, len(images))
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=max(2, math.ceil(self.batch_size / workers)) if workers else None,
            worker_init_fn=partial(_start_worker, os.getpid()),
        )
        large: list[ImageFile] = []
        items = zip(images, loader, strict=True)
        try:
            while batch := list(islice(items, self.batch_size)):
                large += [image for image, item in batch if item is None]
                yield [(image, item) for image, item in batch if item is not None]
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise CocosegError(
                "a process that decodes images was killed, perhaps for its memory; lower workers"
            ) from error
        for image in large:
            yield [(image, dataset.decode(image))]

    def _predict(self, images: Sequence[Decoded]) -> Iterator[tuple[Decoded, np.ndarray]]:
        """Yield images with their masks, (h, w) uint8 class indices; equal inputs share a forward pass."""
        groups: dict[tuple[int, ...], list[Decoded]] = {}
        for decoded in images:
            groups.setdefault(decoded.input.shape, []).append(decoded)
        for (height, width, _), group in groups.items():
            limit = max(1, FORWARD_PIXELS // (height * width))
            for start in range(0, len(group), limit):
                part = group[start : start + limit]
                yield from zip(part, self._masks(part), strict=True)

    def _masks(self, images: Sequence[Decoded]) -> Iterator[np.ndarray]:
        stacked = np.stack([decoded.input for decoded in images])
        for decoded in images:
            decoded.input = None
        try:
            masks = self.predictor.masks(
                torch.from_numpy(stacked).permute(0, 3, 1, 2), [decoded.size for decoded in images]
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise CocosegError("out of memory: lower batch_size, scale, or the sides of tile") from error
        return (mask.cpu().numpy() for mask in masks)

    def _write(self, decoded: Decoded, mask: np.ndarray) -> Entry:
        """Write the results of an image with this mask, (h, w) uint8 class indices."""
        paths, labels, canvas = self.paths, self.encoding.labels, decoded.canvas
        name = decoded.image.result_name
        self.encoding.write(mask, paths.mask(name))
        if canvas is not None:
            small = resize_mask(mask, canvas.shape[:2])
            if paths.overlay:
                over = PIL.Image.fromarray(overlay(canvas, small, labels))
                buffer = BytesIO()
                with_legend(over, mask, labels).save(buffer, format="JPEG", quality=90)
                write_bytes(paths.overlaid(name), buffer.getvalue())
            if paths.gallery:
                write_thumbnails(paths.output, name, canvas, small, labels)
        counts = np.bincount(mask.ravel(), minlength=256)
        return Entry(
            image=relative_path(decoded.image.path, paths.output),
            name=name,
            file_bytes=decoded.file_bytes,
            changed_ns=decoded.changed_ns,
            height=mask.shape[0],
            width=mask.shape[1],
            pixels={index: int(counts[index]) for index in np.flatnonzero(counts).tolist()},
        )


def _start_worker(parent: int, worker: int) -> None:
    """Let a worker process outlive signals to the group, but not the process `parent`.

    A worker that waits for its images to be taken would wait forever after the parent was killed.
    """
    leave_group(worker)
    end_with_parent(parent)


def _is_full(writing: Sequence[tuple[Decoded, Future[Entry]]]) -> bool:
    """Whether as much waits to be written as memory should hold."""
    return len(writing) > 1 and sum(math.prod(decoded.size) for decoded, _ in writing) > WRITE_PIXELS


def _outcome(decoded: Decoded, writing: Future[Entry]) -> tuple[ImageFile, Entry | str]:
    """Wait until the results of an image are written.

    Raises:
        CocosegError: they can't be, for another reason than their name.
    """
    try:
        return decoded.image, writing.result()
    except CocosegError as error:
        if not is_for_its_name(error):
            raise
        return decoded.image, str(error)
