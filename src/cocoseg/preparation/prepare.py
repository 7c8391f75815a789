"""Preparation of a data set: annotation file or mask images -> chosen images -> prepared folder.

Missing annotations and images are downloaded where that is allowed. A set is prepared once, and anew when its
input changes.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cocoseg.config import AUTO, COCO_ANNOTATIONS, Config, DataConfig
from cocoseg.durations import now
from cocoseg.errors import CocosegError, count_of
from cocoseg.files import remove_parts, write_bytes, write_json
from cocoseg.images.exif import reading_of_set
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.contact_sheet import write_contact_sheet
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.faults import require_classes
from cocoseg.preparation.prepared_folder import (
    EXTRA,
    NEW,
    PREVIEW,
    Index,
    Pair,
    PreparedSet,
    all_sets,
    claimed,
    find_current,
    is_prepared,
    read_index,
    remove_masks,
)
from cocoseg.preparation.report import Tally
from cocoseg.preparation.source import AnnotationSource, MaskSource, Source

log = logging.getLogger(__name__)

OTHER_ARCHIVES = {  # kind of a file that COCO's archive of instances does not hold -> advice
    "panoptic": "it is in {}, and its PNGs in a zip within that; put their folder beside it",
    "stuff": "data.annotations_url={} fetches it",
}
CUT_BITS = "images of more than 8 bits: values of up to {} bits; those beyond data.bits={} are cut"

Fingerprint = dict[str, Any]  # see `PreparedSet.fingerprint`


def prepare(
    config: Config,
    *,
    may_download: bool = False,
    for_training: bool = True,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Prepare the training set, the validation set where it has a file of its own, and `data.extra`.

    A set that is prepared already and unchanged is left alone. One process prepares at a time; others wait.

    Args:
        may_download: fetch what is missing, where `data.download` allows it.
        for_training: refuse a training set in which no class has a pixel.
        begin: called once the input has been read and checked, before images are fetched and masks drawn.

    Raises:
        CocosegError: bad input; the folder is as it was before.
        IncompleteError: images could not be fetched; `failed.json` lists them, and the next run fetches them.
    """
    if config.data.own is not None:
        raise CocosegError("data._target_: only train.py takes a data set of one's own")
    fetches, workers = may_download and config.data.fetches, config.prepare.workers
    sets = all_sets(config)
    if (shapes := config.data.shapes) is not None:
        draw_shapes(Path(str(config.data.root)), images=shapes.images, seed=shapes.seed)
    if is_prepared(config):
        for prepared in sets:
            _report_prepared(prepared, for_training=for_training)
        begin()
        return
    with claimed(sets):
        for prepared in sets:
            remove_parts(prepared.folder)
            shutil.rmtree(prepared.folder / NEW, ignore_errors=True)
        if fetches:
            _fetch_annotations(config.data, sets)
        outdated = _read_outdated(sets, workers, for_training=for_training)
        if not fetches:
            for source, _ in outdated:
                source.require_images()
        begin()
        for source, fingerprint in outdated:
            _prepare_set(source, fingerprint, workers, fetches=fetches, for_training=for_training)


def _read_outdated(
    sets: Sequence[PreparedSet], workers: int | None, *, for_training: bool
) -> list[tuple[Source, Fingerprint]]:
    """Read the sets that are not prepared, or whose input has changed.

    Raises:
        CocosegError: a file is bad, the labels of two sets differ, or there is nothing to learn.
    """
    outdated: list[tuple[Source, Fingerprint]] = []
    expected: LabelMap | None = None
    for prepared in sets:
        labels = find_current(prepared)
        # Classes of an extra file, and those found in masks, depend on the training set.
        if labels is None or (expected is not None and expected.difference(labels)):
            fingerprint = prepared.fingerprint()  # before files are read, which may change meanwhile
            source = _read(prepared, workers, expected)
            outdated.append((source, fingerprint | source.more_inputs()))
            labels = source.labels
        else:
            _report_prepared(prepared, for_training=for_training)
        if expected is not None and (difference := expected.difference(labels)):
            found = prepared.mask_dir is not None and prepared.data.classes is None
            advice = "; name the classes of both, 'data.classes=[…]'" if found else ""
            raise CocosegError(
                f"{prepared.origin}: other labels than those of {sets[0].origin}: {difference}{advice}"
            )
        expected = labels
    return outdated


def _report_prepared(prepared: PreparedSet, *, for_training: bool) -> None:
    """Say that a set is prepared already, and which classes have no pixel.

    Raises:
        CocosegError: there is nothing to learn.
    """
    index = read_index(prepared.folder)
    if for_training:
        require_classes(prepared, index)
    log.info("%s: prepared already, nothing changed", prepared.folder)
    _log_warnings(index.unseen)


def _read(prepared: PreparedSet, workers: int | None, expected: LabelMap | None) -> Source:
    """Read a set and choose its images; `expected` are the classes of the training set, once it is read."""
    log.info("%s: reading", prepared.origin)
    if prepared.mask_dir is not None:
        return MaskSource.read(prepared, prepared.mask_dir, workers, expected)
    return AnnotationSource.read(prepared, prepared.origin, expected if prepared.name == EXTRA else None)


def _fetch_annotations(data: DataConfig, sets: Sequence[PreparedSet]) -> None:
    files = [prepared.annotation_file for prepared in sets if prepared.annotation_file is not None]
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    if data.annotations_url is None:
        raise CocosegError(f"{missing[0]}: no such file; data.annotations_url=<address> fetches it")
    kind = missing[0].name.partition("_")[0]
    if data.annotations_url == COCO_ANNOTATIONS and kind in OTHER_ARCHIVES:
        address = COCO_ANNOTATIONS.replace("annotations_train", f"{kind}_annotations_train")
        raise CocosegError(f"{missing[0]}: no such file; {OTHER_ARCHIVES[kind].format(address)}")
    from cocoseg.preparation.download import fetch_annotations  # urllib3 takes 0.1 s to import

    fetch_annotations(data.annotations_url, *missing)


def _prepare_set(
    source: Source, fingerprint: Fingerprint, workers: int | None, *, fetches: bool, for_training: bool
) -> None:
    """Fetch missing images, make all files of a set in the folder NEW, then replace the old ones by them."""
    begin, prepared = now(), source.prepared
    folder, new = prepared.folder, prepared.folder / NEW
    if not (folder / "prepared.json").exists():
        write_json(folder / "prepared.json", {"complete": False})  # the folder is ours from here on
    (folder / "failed.json").unlink(missing_ok=True)
    if fetches:
        source.fetch_images(folder / "failed.json")
    try:
        records = source.draw(new / "masks", workers)
        tally = Tally(records)
        unseen = source.find_unseen(tally)
        index = _index(source, records, tally, unseen)
        if for_training:
            require_classes(prepared, index)
        warnings = source.find_faults(tally)
        if tally.bits > (index.bits or 0):
            warnings.append(CUT_BITS.format(tally.bits, index.bits))
        warnings += unseen
        write_json(new / "index.json", msgspec.to_builtins(index))
        source.write_subset(new / prepared.subset_file.name)
        encoding = MaskEncoding(prepared.masks.encoding, source.labels)
        encoding.save(new)
        write_bytes(new / "report.md", source.report(tally, warnings).encode())
        shown = [pair for pair, record in zip(index.pairs, records, strict=True) if record.visible]
        write_contact_sheet(new, prepared.image_dir, shown or index.pairs, encoding, index.bits)
        _publish(prepared, fingerprint)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    log.info("%s: %s in %.1f s", folder / "masks", count_of(len(records), "mask"), now() - begin)
    shares = (100 * tally.pixels[index] / tally.pixels.total() for index in (0, IGNORE_INDEX))
    text = "  %d of %d classes occur; %.1f %% of the pixels are background, %.1f %% ignored"
    log.info(text, len(tally.images), len(source.labels) - 1, *shares)
    if tally.bits:
        log.info("  images of more than 8 bits: scaled from %d", index.bits)
    _log_warnings(warnings)
    log.info("  %s and %s show more", folder / "report.md", PREVIEW)


def _log_warnings(lines: Sequence[str]) -> None:
    for line in lines:
        log.warning("  warning: %s", line)


def _index(source: Source, records: Sequence[MaskRecord], tally: Tally, unseen: list[str]) -> Index:
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


def _publish(prepared: PreparedSet, fingerprint: Fingerprint) -> None:
    """Replace the old files by the new ones; `prepared.json` calls the folder incomplete meanwhile."""
    folder, new = prepared.folder, prepared.folder / NEW
    write_json(folder / "prepared.json", {"complete": False})
    remove_masks(folder)
    (new / "index.json").replace(folder / "index.json")  # first: it lists the masks that are ours
    if not (folder / "masks").exists():
        (new / "masks").replace(folder / "masks")
    for path in [path for path in new.rglob("*") if not path.is_dir()]:
        target = folder / path.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    write_json(folder / "prepared.json", {"complete": True, **fingerprint})
