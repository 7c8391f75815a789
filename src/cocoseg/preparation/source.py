"""The input of a prepared folder: an annotation file, or mask images."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import msgspec

from cocoseg.config import DataConfig
from cocoseg.config_cross_checks import how_to_fetch
from cocoseg.errors import CocosegError, IncompleteError, count_of
from cocoseg.files import write_json
from cocoseg.images.image_files import has_content
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import LabelMap
from cocoseg.mask_images.convert import MaskSet, convert
from cocoseg.mask_images.mask_folder import read_mask_folder
from cocoseg.preparation import coco_file
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.draw_masks import draw_masks
from cocoseg.preparation.faults import find_faults, find_mask_faults, find_unseen, find_unseen_in_masks
from cocoseg.preparation.missing import require_images, require_pngs, under_similar_names
from cocoseg.preparation.prepared_folder import EXTRA, PreparedSet
from cocoseg.preparation.report import Tally, annotation_report, as_markdown, report
from cocoseg.preparation.subset import choose, choose_masks
from cocoseg.preparation.survey import sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A set to be prepared, its classes, and the images chosen from it: the base of both kinds of input."""

    prepared: PreparedSet
    labels: LabelMap

    def require_images(self) -> None:
        """Raise CocosegError where chosen images are missing."""

    def fetch_images(self, failed_file: Path) -> None:
        """Fetch missing images; list those that can't be fetched in a file, and raise IncompleteError."""

    def draw(self, output_dir: Path, workers: int | None) -> list[MaskRecord]:
        """Write a mask of each chosen image; raise CocosegError where one can't be drawn."""
        raise NotImplementedError

    def more_inputs(self) -> dict[str, Any]:
        """The part of the fingerprint that is known once the set is read."""
        return {}

    def find_unseen(self, tally: Tally) -> list[str]:
        """Find the reasons why classes have no pixel: a line for each reason."""
        return find_unseen_in_masks(self.labels, tally.images)

    def find_faults(self, tally: Tally) -> list[str]:
        """Find faults of the set: a line for each kind."""
        return find_mask_faults(self.labels, tally)

    def write_subset(self, path: Path) -> None:
        """Write the COCO file of the chosen images, where the input is a COCO file."""

    def report(self, tally: Tally, warnings: Sequence[str]) -> str:
        """The content of `report.md`."""
        raise NotImplementedError


@dataclass(frozen=True)
class AnnotationSource(Source):
    """A COCO annotation file."""

    coco: CocoFile
    images: list[Image]

    @classmethod
    def read(cls, prepared: PreparedSet, path: Path, labels: LabelMap | None) -> Self:
        """Read the annotation file and choose the images. Categories are matched with `labels`, if given."""
        coco = coco_file.read(path)
        coco.require_pixels()
        subset = prepared.data.subset
        if labels is None:
            labels = LabelMap.from_categories(coco.categories, subset.categories, prepared.data.labels)
        else:
            coco = _match(coco, labels, prepared.data)
        images = choose(
            coco,
            size=prepared.size,
            seed=subset.seed,
            category_ids=labels.index_of.keys(),
            keep_empty=prepared.keep_empty,
            min_pixels=subset.min_pixels,
        )
        if prepared.data.file_names == "similar":
            images = under_similar_names(images, coco.images, prepared.image_dir)
        require_pngs(coco, images)
        return cls(prepared, labels, coco, images)

    def require_images(self) -> None:
        prepared, data = self.prepared, self.prepared.data
        key = "data.val_images" if prepared.name == "val" and data.val_images is not None else "data.images"
        key = "images of data.extra" if prepared.name == EXTRA else key
        has_address = data.images_url is not None or any(image.coco_url for image in self.images)
        advice = how_to_fetch(data) if has_address else None
        option = "data.file_names=similar"
        require_images(self.images, self.coco.images, prepared.image_dir, key, option, advice)

    def fetch_images(self, failed_file: Path) -> None:
        data, image_dir = self.prepared.data, self.prepared.image_dir
        missing = [image for image in self.images if not has_content(image_dir / image.file_name)]
        if not missing:
            return
        from cocoseg.preparation.download import fetch_images  # urllib3 takes 0.1 s to import

        log.info("%s: fetching %s", image_dir, count_of(len(missing), "image"))
        failures = fetch_images(missing, image_dir, base_url=data.images_url, max_bytes=data.max_image_bytes)
        if failures:
            write_json(failed_file, {"failed": [asdict(failure) for failure in failures]})
            raise IncompleteError(
                f"{len(failures)} of {len(self.images)} images could not be fetched "
                f"({failures[0].file_name}: {failures[0].reason}); {failed_file} lists them; run prepare.py "
                "again to go on"
            )

    def draw(self, output_dir: Path, workers: int | None) -> list[MaskRecord]:
        prepared, subset = self.prepared, self.prepared.data.subset
        return draw_masks(
            *(self.coco, self.images, prepared.image_dir, output_dir, self.labels, prepared.masks),
            other=subset.other,
            workers=workers,
            sample=sample(self.images, subset.seed) if self.coco.pngs is None else set(),
            exif=prepared.data.exif,
        )

    def more_inputs(self) -> dict[str, Any]:
        return {} if self.coco.pngs is None else self.prepared.fingerprint_of_pngs()

    def find_unseen(self, tally: Tally) -> list[str]:
        return find_unseen(self.coco, self.images, self.labels, tally.images, self.prepared.masks)

    def find_faults(self, tally: Tally) -> list[str]:
        keeps_empty = self.prepared.keep_empty
        return find_faults(self.coco, self.images, self.labels, tally, keeps_empty=keeps_empty)

    def write_subset(self, path: Path) -> None:
        self.coco.write_subset(self.images, path)

    def report(self, tally: Tally, warnings: Sequence[str]) -> str:
        rules = self.prepared.masks
        return annotation_report(self.coco, self.images, self.labels, rules, tally, warnings)


def _match(coco: CocoFile, labels: LabelMap, data: DataConfig) -> CocoFile:
    """Give the annotations of an extra file the category ids of the training file.

    Its categories are those of the training file, or have the names of the classes, as in files that
    predict.py writes.

    Raises:
        CocosegError: they are neither.
    """
    with suppress(CocosegError):  # a category that data.labels names may be missing
        own = LabelMap.from_categories(coco.categories, data.subset.categories, data.labels)
        if labels.difference(own) is None:
            return coco
    used = {annotation.category_id for annotation in coco.annotations}
    try:
        ids = labels.ids_by_name(category for category in coco.categories if category.id in used)
    except CocosegError as error:
        raise CocosegError(f"data.extra: {coco.path}: {error}") from error
    structs = msgspec.structs
    renamed = [structs.replace(one, category_id=ids[one.category_id]) for one in coco.annotations]
    return replace(coco, annotations=renamed)


@dataclass(frozen=True)
class MaskSource(Source):
    """Mask images; `total` is their number before the choice. None is missing, as all have been read."""

    masks: MaskSet
    total: int

    @classmethod
    def read(cls, prepared: PreparedSet, mask_dir: Path, workers: int | None, known: LabelMap | None) -> Self:
        """Read a folder of masks and choose the images; `known` are the classes of the training set."""
        ids = () if known is None else known.index_of
        masks = read_mask_folder(
            *(prepared.image_dir, mask_dir, prepared.data), name=prepared.name, known=ids, workers=workers
        )
        chosen = masks._replace(items=choose_masks(masks, prepared))
        return cls(prepared, masks.labels, chosen, len(masks.items))

    def draw(self, output_dir: Path, workers: int | None) -> list[MaskRecord]:
        encoding = MaskEncoding(self.prepared.masks.encoding, self.labels)
        return convert(self.masks, output_dir, encoding, self.prepared.data.exif, workers)

    def report(self, tally: Tally, warnings: Sequence[str]) -> str:
        sizes = Counter(item.found.size for item in self.masks.items)
        facts = [as_markdown(fact) for fact in (f"masks of {self.masks.mask_dir}", *self.masks.facts)]
        return report(self.total, sizes, self.labels, tally, warnings, facts)
