"""Preparation: annotation file -> chosen images -> masks and the other files that prepared_folder.py lists.

Missing annotations and images are downloaded where that is allowed. A set is prepared once, and anew when its
inputs change.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cocoseg.config import AUTO, COCO_ANNOTATIONS, Config, DataConfig
from cocoseg.durations import now
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.figures.comparison import spread
from cocoseg.files import locked, remove_parts, write_bytes, write_json
from cocoseg.images.exif import reading_of_set
from cocoseg.images.image_files import has_content
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation import coco_file as coco_format
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.contact_sheet import EXAMPLES, write_contact_sheet
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.draw_masks import draw_masks
from cocoseg.preparation.faults import find_faults, find_unseen, require_classes
from cocoseg.preparation.missing import require_pngs, require_prepared_images, under_similar_names
from cocoseg.preparation.prepared_folder import (
    EXTRA,
    NEW,
    PREVIEW,
    Index,
    Pair,
    PreparedSet,
    all_sets,
    claim,
    find_current,
    is_prepared,
    read_index,
    remove_masks,
)
from cocoseg.preparation.report import Tally, report
from cocoseg.preparation.subset import choose
from cocoseg.preparation.survey import sample

log = logging.getLogger(__name__)

OTHER_ARCHIVES = {  # files that are not in COCO's archive of instances
    "panoptic": "it is in {}, and its PNGs in a zip within that; put their folder beside it",
    "stuff": "data.annotations_url={} fetches it",
}
CUT_BITS = "images of more than 8 bits: values of up to {} bits; those beyond data.bits={} are cut"


class _Source(NamedTuple):
    """A set to be prepared: its annotation file as read, and the classes and images chosen from it."""

    prepared: PreparedSet
    fingerprint: dict[str, Any]
    coco: CocoFile
    labels: LabelMap
    images: list[Image]


def prepare(
    config: Config,
    *,
    may_download: bool = False,
    is_learned: bool = True,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Prepare the training set, the validation set where it has a file of its own, and `data.extra`.

    What is there and unchanged is left alone. One process at a time: others wait.

    Args:
        may_download: fetch what is missing, where `data.download` lets it.
        is_learned: a network is to be trained on the set; else no class needs a pixel.
        begin: called once the annotations have been read and checked.

    Raises:
        CocosegError: bad input; what had been prepared before is still whole then.
        IncompleteError: images could not be fetched; `failed.json` lists them, the next run takes up there.
    """
    if config.data.own is not None:
        raise CocosegError("data._target_: only train.py takes a data set of one's own")
    fetches = may_download and config.data.fetches
    sets = all_sets(config)
    if (shapes := config.data.shapes) is not None:
        draw_shapes(Path(str(config.data.root)), images=shapes.images, seed=shapes.seed)
    if is_prepared(config):
        for prepared in sets:
            _report_prepared(prepared, is_learned=is_learned)
        begin()
        return
    claim(sets)
    with locked(sets[0].folder):
        for prepared in sets:
            remove_parts(prepared.folder)
            shutil.rmtree(prepared.folder / NEW, ignore_errors=True)
        if fetches:
            _fetch_annotations(config.data, sets)
        sources = _read_outdated(sets, is_learned=is_learned)
        if not fetches:
            for source in sources:
                require_prepared_images(source.prepared, source.images, source.coco.images)
        begin()
        for source in sources:
            _prepare_set(source, config.prepare.workers, fetches=fetches, is_learned=is_learned)


def _read_outdated(sets: Sequence[PreparedSet], *, is_learned: bool) -> list[_Source]:
    """Read the sets that are not prepared, or changed since.

    Raises:
        CocosegError: an annotation file is bad, the labels of two sets differ, or there is nothing to learn.
    """
    sources: list[_Source] = []
    expected: LabelMap | None = None
    for prepared in sets:
        labels, given = find_current(prepared), expected if prepared.name == EXTRA else None
        if labels is None or (given is not None and given.difference(labels)):
            sources.append(_read(prepared, given))
            labels = sources[-1].labels
        else:
            _report_prepared(prepared, is_learned=is_learned)
        if expected is not None and (difference := expected.difference(labels)):
            raise CocosegError(
                f"{prepared.annotation_file}: other labels than the training file's: {difference}"
            )
        expected = labels
    return sources


def _report_prepared(prepared: PreparedSet, *, is_learned: bool) -> None:
    """Say that a set is prepared already, and which classes have no pixel.

    Raises:
        CocosegError: there is nothing to learn.
    """
    index = read_index(prepared.folder)
    if is_learned:
        require_classes(prepared, index)
    log.info("%s: prepared already, nothing changed", prepared.folder)
    _log_warnings(index.unseen)


def _read(prepared: PreparedSet, labels: LabelMap | None = None) -> _Source:
    """Read the annotation file and choose the images; its categories are matched with `labels`, if given."""
    fingerprint = prepared.fingerprint()  # before the file is read, which may change meanwhile
    log.info("%s: reading", prepared.annotation_file)
    coco = coco_format.read(prepared.annotation_file)
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
    return _Source(prepared, fingerprint, coco, labels, images)


def _match(coco: CocoFile, labels: LabelMap, data: DataConfig) -> CocoFile:
    """Give the annotations of an extra file the category ids of the training file.

    Its categories are those of the training file, or they are called as the classes, as those that
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


def _fetch_annotations(data: DataConfig, sets: Sequence[PreparedSet]) -> None:
    missing = [prepared.annotation_file for prepared in sets if not prepared.annotation_file.is_file()]
    if not missing:
        return
    if data.annotations_url is None:
        raise CocosegError(
            f"{missing[0]}: no such file, and data.annotations_url, to fetch it from, is not set"
        )
    kind = missing[0].name.partition("_")[0]
    if data.annotations_url == COCO_ANNOTATIONS and kind in OTHER_ARCHIVES:
        address = COCO_ANNOTATIONS.replace("annotations_train", f"{kind}_annotations_train")
        raise CocosegError(f"{missing[0]}: no such file; {OTHER_ARCHIVES[kind].format(address)}")
    from cocoseg.preparation.download import fetch_annotations  # urllib3 takes 0.1 s to import

    fetch_annotations(data.annotations_url, *missing)


def _fetch_images(source: _Source, failed_file: Path) -> None:
    """Fetch the images that are missing. Where some can't be had, `failed_file` lists them."""
    data, image_dir = source.prepared.data, source.prepared.image_dir
    missing = [image for image in source.images if not has_content(image_dir / image.file_name)]
    if not missing:
        return
    from cocoseg.preparation.download import fetch_images  # urllib3 takes 0.1 s to import

    log.info("%s: fetching %d images", image_dir, len(missing))
    failures = fetch_images(missing, image_dir, base_url=data.images_url, max_bytes=data.max_image_bytes)
    if failures:
        write_json(failed_file, {"failed": [asdict(failure) for failure in failures]})
        raise IncompleteError(
            f"{len(failures)} of {len(source.images)} images could not be fetched ({failures[0].file_name}: "
            f"{failures[0].reason}); {failed_file} lists them; run prepare.py again to go on"
        )


def _prepare_set(source: _Source, workers: int | None, *, fetches: bool, is_learned: bool) -> None:
    begin = now()
    prepared = source.prepared
    folder, new = prepared.folder, prepared.folder / NEW
    if not (folder / "prepared.json").exists():
        write_json(folder / "prepared.json", {"complete": False})  # the folder is ours from here on
    (folder / "failed.json").unlink(missing_ok=True)
    if fetches:
        _fetch_images(source, folder / "failed.json")
    subset, images = prepared.data.subset, source.images
    surveyed = sample(images, subset.seed) if source.coco.pngs is None else set()
    try:
        folders, exif = (prepared.image_dir, new / "masks"), prepared.data.exif
        records = draw_masks(
            *(source.coco, images, *folders, source.labels, prepared.masks),
            other=subset.other,
            workers=workers,
            sample=surveyed,
            exif=exif,
        )
        tally = Tally(records)
        unseen = find_unseen(source.coco, images, source.labels, tally.images, prepared.masks)
        index = _index(source, records, tally, unseen)
        if is_learned:
            require_classes(prepared, index)
        warnings = find_faults(source.coco, images, source.labels, tally, keeps_empty=prepared.keep_empty)
        if tally.bits > (index.bits or 0):
            warnings.append(CUT_BITS.format(tally.bits, index.bits))
        warnings += unseen
        write_json(new / "index.json", msgspec.to_builtins(index))
        _write_files(source, records, tally, warnings, index.bits)
        _publish(prepared, source.fingerprint)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    log.info("%s: %d masks in %.1f s", folder / "masks", len(records), now() - begin)
    total = tally.pixels.total()
    log.info(
        "  %d of %d classes occur; %.1f %% of the pixels are background, %.1f %% ignored",
        len(tally.images),
        len(source.labels) - 1,
        100 * tally.pixels[0] / total,
        100 * tally.pixels[IGNORE_INDEX] / total,
    )
    if tally.bits:
        log.info("  images of more than 8 bits: scaled from %d", index.bits)
    _log_warnings(warnings)
    log.info("  %s and %s show more", folder / "report.md", PREVIEW)


def _log_warnings(lines: Sequence[str]) -> None:
    for line in lines:
        log.warning("  warning: %s", line)


def _index(source: _Source, records: Sequence[MaskRecord], tally: Tally, unseen: list[str]) -> Index:
    exif, bits = source.prepared.data.exif, source.prepared.data.bits
    return Index(
        pairs=[
            Pair(record.image, f"masks/{record.mask}", record.orientation if record.upright else 1)
            for record in records
        ],
        pixels=[tally.pixels[i] for i in range(len(source.labels))],
        ignored_pixels=tally.pixels[IGNORE_INDEX],
        unseen=unseen,
        exif=reading_of_set(exif, tally.uprights.values()),
        bits=(tally.bits if bits == AUTO else bits) if tally.bits else None,
    )


def _write_files(
    source: _Source, records: Sequence[MaskRecord], tally: Tally, warnings: Sequence[str], bits: int | None
) -> None:
    """Write what is not there yet: masks and `index.json` are."""
    prepared, labels, new = source.prepared, source.labels, source.prepared.folder / NEW
    source.coco.write_subset(source.images, new / prepared.subset_file.name)
    encoding = MaskEncoding(prepared.masks.encoding, labels)
    encoding.save(new)
    text = report(source.coco, source.images, labels, prepared.masks, tally, warnings)
    write_bytes(new / "report.md", text.encode())
    shown = [record for record in records if record.visible] or records
    examples = [shown[index] for index in spread(len(shown), EXAMPLES)]
    pairs = [(prepared.image_dir / record.image, new / "masks" / record.mask) for record in examples]
    orientations = [record.orientation if record.upright else 1 for record in examples]
    write_contact_sheet(new / PREVIEW, pairs, encoding, orientations, bits)


def _publish(prepared: PreparedSet, fingerprint: dict[str, Any]) -> None:
    """Replace what was there; `prepared.json` says so first and last, so a kill between is noticed."""
    folder, new = prepared.folder, prepared.folder / NEW
    write_json(folder / "prepared.json", {"complete": False})
    remove_masks(folder)
    (new / "index.json").replace(folder / "index.json")  # first: it says which masks are ours
    if not (folder / "masks").exists():
        (new / "masks").replace(folder / "masks")
    for path in [path for path in new.rglob("*") if not path.is_dir()]:
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    write_json(folder / "prepared.json", {"complete": True, **fingerprint})
