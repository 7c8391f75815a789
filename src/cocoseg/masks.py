"""Masks for a whole folder of images: checked, drawn and written by several processes."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cocoseg import coco as coco_format
from cocoseg.coco import CocoFile, Image
from cocoseg.config import MasksConfig, check_labels, check_masks, check_other
from cocoseg.cores import available_cores
from cocoseg.encoding import MaskEncoding
from cocoseg.errors import CocosegError
from cocoseg.images import check_image
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.progress import track
from cocoseg.rasterize import Instance, Layers, paint, parse_layers
from cocoseg.survey import Survey, survey

CHUNK = 16  # images per task of a worker process


class MaskRecord(NamedTuple):
    """One image and its mask."""

    image: str  # file_name, relative to the image folder
    mask: str  # relative to the folder of the masks
    survey: Survey


class _Task(NamedTuple):
    image: Image
    instances: list[Instance]


@dataclass(frozen=True)
class _Painter:
    """What every task shares; a call draws one image."""

    annotation_file: Path
    image_dir: Path
    output_dir: Path | None
    settings: MasksConfig
    encoding: MaskEncoding

    def __call__(self, task: _Task) -> MaskRecord | str:
        """The record of the mask written, or the sentence that says why the image can't be used."""
        image, rules = task.image, self.settings
        try:
            if self.output_dir is not None:
                check_image(self.image_dir / image.file_name, image.width, image.height)
            layers = self._layers(task)
            values = self.encoding.drawn_values
            mask = paint(layers, image.height, image.width, rules.overlap, rules.rasterizer, values)
            found = survey(layers, mask, rules.overlap, rules.rasterizer, values)
            name = self.encoding.file_name(image.file_name, found.pixels)
        except CocosegError as error:
            return error.sentence
        if self.output_dir is not None:
            self.encoding.write_drawn(mask, self.output_dir / name)
        return MaskRecord(image.file_name, name, found)

    def _layers(self, task: _Task) -> Layers:
        image = task.image
        try:
            return parse_layers(task.instances, image.height, image.width, self.settings.crowd)
        except CocosegError as error:
            raise CocosegError(f"{self.annotation_file}: {error}") from error


def create_segmentation_masks(
    image_dir: str | Path,
    annotation_file: str | Path,
    output_dir: str | Path,
    *,
    categories: Sequence[int | str] | None = None,
    labels: str | Mapping[str, Sequence[int | str]] = "all",
    other: str = "background",
    overlap: str = "max",
    rasterizer: str = "pillow",
    crowd: str = "ignore",
    encoding: str = "palette",
    workers: int | None = None,
) -> list[MaskRecord]:
    """Draw a label mask for every image of a COCO instances file.

    Args:
        image_dir: folder of the images; each must be there and have the size that the file says.
        annotation_file: COCO instances file.
        output_dir: gets a PNG per image, `<stem>_mask_cats_18_58.png`, subfolders kept.
        categories: names or ids; None for all.
        labels: `all`, `supercategories`, or groups of categories, see `LabelMap.from_categories`.
        other: objects of categories without a class become `background`, or are ignored (`ignore`).
        overlap, rasterizer, crowd: see `cocoseg.rasterize.draw_mask`.
        encoding: see `cocoseg.encoding.MaskEncoding`.
        workers: processes; None for one per core.

    Returns:
        a record per image, in the order of the file.

    Raises:
        CocosegError: bad annotations or images, named in the message.
    """
    check_labels(labels)
    check_other(other)
    coco = coco_format.read(Path(annotation_file))
    label_map = LabelMap.from_categories(coco.categories, categories, labels)
    settings = MasksConfig(overlap, rasterizer, crowd, encoding)
    check_masks(settings)
    records = draw_masks(
        coco, coco.images, Path(image_dir), Path(output_dir), label_map, settings, other, workers
    )
    drawn = {record.image: record for record in records}
    return [drawn[image.file_name] for image in coco.images]


def draw_masks(
    coco: CocoFile,
    images: Sequence[Image],
    image_dir: Path,
    output_dir: Path | None,
    labels: LabelMap,
    settings: MasksConfig,
    other: str = "background",
    workers: int | None = None,
) -> Iterator[MaskRecord]:
    """Draw the masks of `images`, some of the images of `coco`; see `create_segmentation_masks`.

    Without `output_dir` the annotations are checked and drawn as always, but no image is read and no file
    written.

    Yields:
        records, in any order; the last one before what was wrong is raised.
    """
    _check_names(images, image_dir)
    tasks = _tasks(coco, images, labels, other)
    painter = _Painter(coco.path, image_dir, output_dir, settings, MaskEncoding(settings.encoding, labels))
    workers = min(workers or available_cores(), math.ceil(len(images) / CHUNK))
    problems: list[str] = []
    with closing(_run(painter, tasks, workers)) as results:
        for result in track(results, total=len(images), what="masks"):
            if isinstance(result, str):
                problems.append(result)
            else:
                yield result
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CocosegError("; ".join(sorted(problems)[:3]) + more)


def _tasks(coco: CocoFile, images: Sequence[Image], labels: LabelMap, other: str) -> Iterator[_Task]:
    index_of = labels.index_of
    if other == "ignore":
        index_of = {category.id: IGNORE_INDEX for category in coco.categories} | index_of
    annotations = coco.annotations_of({image.id for image in images})
    for image in images:
        instances = [
            Instance(a.id, index_of[a.category_id], bool(a.iscrowd), bytes(a.segmentation))
            for a in annotations.pop(image.id)
            if a.category_id in index_of
        ]
        yield _Task(image, instances)


def _check_names(images: Sequence[Image], image_dir: Path) -> None:
    """Masks are named after the stems of the images, so two of one stem can't be told apart."""
    seen: dict[PurePosixPath, str] = {}
    for image in images:
        stem = PurePosixPath(image.file_name).with_suffix("")
        if stem in seen:
            raise CocosegError(
                f"{image_dir}: the masks of {seen[stem]} and {image.file_name} "
                "would have the same name; rename one"
            )
        seen[stem] = image.file_name


def _run(painter: _Painter, tasks: Iterator[_Task], workers: int) -> Generator[MaskRecord | str, None, None]:
    """Results in any order; at most a few chunks of tasks per worker are in memory."""
    if workers == 1:
        yield from map(painter, tasks)
        return
    # Fork where it is the platform's habit: it needs no importable main module. Nothing of torch runs there.
    context = get_context("fork" if sys.platform == "linux" else None)
    with (
        _sigterm_as_exit(),
        ProcessPoolExecutor(workers, context, _start_worker, (painter, os.getpid())) as pool,
    ):
        pending: set[Future[list[MaskRecord | str]]] = set()
        try:
            while chunk := list(islice(tasks, CHUNK)):
                pending.add(pool.submit(_draw_chunk, chunk))
                if len(pending) >= 4 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
            for future in pending:
                yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for what is being drawn: nothing is written later
            raise


_painter: _Painter  # of this worker process


def _start_worker(painter: _Painter, parent: int) -> None:
    global _painter
    _painter = painter
    # Ctrl-C reaches the whole group, and a scheduler's SIGTERM often does; the parent answers both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker soon after its parent was killed: nothing else would tell it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that worker processes and unfinished files are cleared away."""
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _draw_chunk(chunk: list[_Task]) -> list[MaskRecord | str]:
    return [_painter(task) for task in chunk]
