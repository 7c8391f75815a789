"""Masks of a whole folder of images: checked, drawn and written by several processes."""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from cocoseg.config import AUTO, Config, MasksConfig
from cocoseg.config_checks import convert
from cocoseg.errors import CocosegError
from cocoseg.images.exif import IGNORE, Choice, Reading, turn_mask
from cocoseg.images.image_files import Inspection, check_image
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import IGNORE_INDEX, Grouping, Kind, LabelMap
from cocoseg.preparation import coco_file
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.missing import require_images, require_pngs, under_similar_names
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.panoptic import Segments
from cocoseg.preparation.rotated_images import Rotated, find_readings, layers_as_read
from cocoseg.preparation.segmentations import Instance, Layers, SegmentationError
from cocoseg.preparation.survey import survey
from cocoseg.progress import run_tasks


class _Task(NamedTuple):
    image: Image
    found: Inspection
    instances: Iterable[Instance]
    choice: Choice
    in_sample: bool


@dataclass(frozen=True)
class _Painter:
    """Settings that all tasks share, and the work on a task. Results that are texts are error messages."""

    annotation_file: Path
    image_dir: Path
    output_dir: Path
    settings: MasksConfig
    encoding: MaskEncoding

    def inspect(self, image: Image) -> Inspection | str:
        try:
            return check_image(self.image_dir / image.file_name, image.width, image.height)
        except CocosegError as error:
            return str(error)

    def __call__(self, task: _Task) -> MaskRecord | str:
        image, found, choice, values = task.image, task.found, task.choice, self.encoding.paint_values
        if choice.reading is Reading.STORED and (image.width, image.height) != found.size:
            return (
                f"{self.image_dir / image.file_name}: the annotation file says {image.width}x{image.height}, "
                "which is its size turned by its EXIF rotation; set data.exif=auto or apply"
            )
        try:
            layers = layers_as_read(task.instances, found, choice.reading, self.settings)
            mask = paint(layers, self.settings, values)
        except SegmentationError as error:
            return f"{self.annotation_file}: {error}"
        except CocosegError as error:
            return str(error)
        pixels = _count_pixels(mask, layers, values)
        name = self.encoding.file_name(image.file_name, pixels)
        upright = choice.reading is not Reading.STORED
        stored = turn_mask(mask, found.orientation, back=True) if upright else mask
        self.encoding.write_painted(stored, self.output_dir / name)
        return MaskRecord(
            image=image.file_name,
            mask=name,
            pixels=pixels,
            warnings=layers.warnings(),
            overlaps=survey(layers, self.settings.rasterizer) if task.in_sample else None,
            orientation=found.orientation,
            upright=upright,
            doubt=choice.warning,
            bits=found.bits,
            faults=found.faults,
        )


def create_segmentation_masks(
    image_dir: str | Path,
    annotation_file: str | Path,
    output_dir: str | Path,
    *,
    categories: Sequence[int | str] | Kind | None = None,
    labels: Grouping = "all",
    other: str = "background",
    overlap: str = "max",
    rasterizer: str = "pillow",
    crowd: str = "ignore",
    encoding: str = "palette",
    exif: str = AUTO,
    file_names: str = "exact",
    workers: int | None = None,
) -> list[MaskRecord]:
    """Draw a label mask for every image of a COCO instances or panoptic file.

    Args:
        image_dir: folder of the images; each must exist and have the size that the file lists.
        annotation_file: COCO file; the PNGs of a panoptic one lie in a folder of its name, beside it or one
            level up.
        output_dir: gets a PNG per image, `<stem>_mask_cats_18_58.png`, in the same subfolder as the image.
        categories: names or ids, `things` or `stuff`; None for all.
        labels: `all`, `supercategories`, or groups of categories, see `LabelMap.from_categories`.
        other: `background` or `ignore`, for objects of categories without a class.
        overlap, rasterizer, crowd, encoding: see `MasksConfig` in `cocoseg.config`.
        exif, file_names: see `DataConfig` there.
        workers: processes; None for one per core.

    Returns:
        a record per image, in the order of the file.

    Raises:
        CocosegError: bad annotations or images, named in the message.
    """
    rules = {"overlap": overlap, "rasterizer": rasterizer, "crowd": crowd, "encoding": encoding}
    data = {"labels": labels, "subset": {"other": other}, "exif": exif, "file_names": file_names}
    config = convert({"masks": rules, "data": data}, Config)
    coco = coco_file.read(Path(annotation_file))
    coco.require_pixels()
    label_map = LabelMap.from_categories(coco.categories, categories, labels)
    images, folders = coco.images, (Path(image_dir), Path(output_dir))
    if file_names == "similar":
        images = under_similar_names(images, coco.images, folders[0])
    require_images(images, coco.images, folders[0])
    require_pngs(coco, images)
    return draw_masks(coco, images, *folders, label_map, config.masks, other, workers, exif=exif)


def draw_masks(
    coco: CocoFile,
    images: Sequence[Image],
    image_dir: Path,
    output_dir: Path,
    labels: LabelMap,
    settings: MasksConfig,
    other: str = "background",
    workers: int | None = None,
    sample: Collection[int] = (),
    exif: str = AUTO,
) -> list[MaskRecord]:
    """Draw the masks of `images`, which are some of those of `coco`; see `create_segmentation_masks`.

    The images whose ids are in `sample` are surveyed for overlaps. The records are in the order of `images`.
    """
    _check_names(images, coco.path)
    painter = _Painter(coco.path, image_dir, output_dir, settings, MaskEncoding(settings.encoding, labels))
    inspections = run_tasks(painter.inspect, images, len(images), "images", workers)
    found = dict(zip((image.id for image in images), inspections, strict=True))
    choices = {image_id: Choice(Reading.STORED) for image_id in found}
    rotated = [image for image in images if found[image.id].orientation != 1 and exif != IGNORE]
    if rotated:
        evidence = [
            Rotated(image_dir / image.file_name, (image.width, image.height), found[image.id], instances)
            for image, instances in _with_instances(coco, rotated, labels, other)
        ]
        chosen = find_readings(evidence, settings, exif, workers)
        choices |= zip((image.id for image in rotated), chosen, strict=True)
    tasks = (
        _Task(image, found[image.id], instances, choices[image.id], image.id in sample)
        for image, instances in _with_instances(coco, images, labels, other)
    )
    return run_tasks(painter, tasks, len(images), "masks", workers)


def _count_pixels(mask: np.ndarray, layers: Layers, values: Sequence[int]) -> dict[int, int]:
    """Count the pixels of each class that occurs in a mask, (H, W) uint8, painted in `values`.

    A comparison for each class that was drawn is several times faster than `np.bincount`, which converts the
    mask to 64 bits.
    """
    indices = {shape.class_index for shape in layers.shapes} | {IGNORE_INDEX}
    pixels = {index: int(np.count_nonzero(mask == values[index])) for index in sorted(indices)}
    pixels[0] = mask.size - sum(pixels.values())
    return {index: count for index, count in pixels.items() if count}


def _with_instances(
    coco: CocoFile, images: Sequence[Image], labels: LabelMap, other: str
) -> Iterator[tuple[Image, Iterable[Instance]]]:
    index_of = labels.index_of
    if other == "ignore":
        index_of = {category.id: IGNORE_INDEX for category in coco.categories} | index_of
    annotations = coco.annotations_of({image.id for image in images})
    for image in images:
        found = annotations.pop(image.id)
        instances = [
            Instance(a.id, index_of[a.category_id], bool(a.iscrowd), bytes(a.segmentation))
            for a in found
            if a.category_id in index_of
        ]
        png = (coco.pngs or {}).get(image.id)
        size, ids = (image.width, image.height), [a.id for a in found if isinstance(a.id, int)]
        yield image, instances if png is None else Segments(png, size, ids, instances)


def _check_names(images: Sequence[Image], file: Path) -> None:
    """Refuse a file that is listed twice, and two images of one stem, which the names of masks begin with."""
    first: dict[str, Image] = {}
    folds = sys.platform in ("darwin", "win32")  # their file systems don't tell upper from lower case
    for image in images:
        path = PurePosixPath(image.file_name)
        stem = str(path.with_suffix(""))
        other = first.setdefault(stem.casefold() if folds else stem, image)
        if other is not image and PurePosixPath(other.file_name) == path:
            raise CocosegError(
                f"{file}: {path} is listed twice (images {other.id} and {image.id}); list it once, with all "
                "annotations that are on it"
            )
        if other is not image:
            raise CocosegError(
                f"{file}: the masks of {other.file_name} (image {other.id}) and {image.file_name} (image "
                f"{image.id}) would have the same name; rename one of them, in the folder and in the file"
            )
