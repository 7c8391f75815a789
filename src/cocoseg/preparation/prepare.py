"""Preparation: annotation file or mask images -> chosen images -> what prepared_folder.py lists.

Missing annotations and images are downloaded where that is allowed. A set is prepared once, and anew when its
inputs change.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cocoseg.config import AUTO, COCO_ANNOTATIONS, Config, DataConfig
from cocoseg.durations import now
from cocoseg.errors import CocosegError
from cocoseg.figures.comparison import spread
from cocoseg.files import remove_parts, write_bytes, write_json
from cocoseg.images.exif import reading_of_set
from cocoseg.images.mask_files import MaskEncoding, MaskRecord
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation.contact_sheet import EXAMPLES, write_contact_sheet
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

OTHER_ARCHIVES = {  # files that are not in COCO's archive of instances
    "panoptic": "it is in {}, and its PNGs in a zip within that; put their folder beside it",
    "stuff": "data.annotations_url={} fetches it",
}
CUT_BITS = "images of more than 8 bits: values of up to {} bits; those beyond data.bits={} are cut"


class _Outdated(NamedTuple):
    """A set to be prepared, as read, and what it depended on then."""

    source: Source
    fingerprint: dict[str, Any]


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
    with claimed(sets):
        for prepared in sets:
            remove_parts(prepared.folder)
            shutil.rmtree(prepared.folder / NEW, ignore_errors=True)
        if fetches:
            _fetch_annotations(config.data, sets)
        outdated = _read_outdated(sets, config.prepare.workers, is_learned=is_learned)
        if not fetches:
            for source, _ in outdated:
                source.require_images()
        begin()
        for one in outdated:
            _prepare_set(one, config.prepare.workers, fetches=fetches, is_learned=is_learned)


def _read_outdated(sets: Sequence[PreparedSet], workers: int | None, *, is_learned: bool) -> list[_Outdated]:
    """Read the sets that are not prepared, or changed since.

    Raises:
        CocosegError: a file is bad, the labels of two sets differ, or there is nothing to learn.
    """
    outdated: list[_Outdated] = []
    expected: LabelMap | None = None
    for prepared in sets:
        labels = find_current(prepared)
        # Classes of an extra file, and those found in masks, depend on the training set.
        if labels is None or (expected is not None and expected.difference(labels)):
            fingerprint = prepared.fingerprint()  # before files are read, which may change meanwhile
            source = _read(prepared, workers, expected)
            outdated.append(_Outdated(source, fingerprint | source.more_inputs()))
            labels = source.labels
        else:
            _report_prepared(prepared, is_learned=is_learned)
        if expected is not None and (difference := expected.difference(labels)):
            found = prepared.mask_dir is not None and prepared.data.classes is None
            advice = "; name the classes of both, 'data.classes=[…]'" if found else ""
            raise CocosegError(
                f"{prepared.origin}: other labels than those of {sets[0].origin}: {difference}{advice}"
            )
        expected = labels
    return outdated


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
        raise CocosegError(
            f"{missing[0]}: no such file, and data.annotations_url, to fetch it from, is not set"
        )
    kind = missing[0].name.partition("_")[0]
    if data.annotations_url == COCO_ANNOTATIONS and kind in OTHER_ARCHIVES:
        address = COCO_ANNOTATIONS.replace("annotations_train", f"{kind}_annotations_train")
        raise CocosegError(f"{missing[0]}: no such file; {OTHER_ARCHIVES[kind].format(address)}")
    from cocoseg.preparation.download import fetch_annotations  # urllib3 takes 0.1 s to import

    fetch_annotations(data.annotations_url, *missing)


def _prepare_set(outdated: _Outdated, workers: int | None, *, fetches: bool, is_learned: bool) -> None:
    begin = now()
    source, prepared = outdated.source, outdated.source.prepared
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
        if is_learned:
            require_classes(prepared, index)
        warnings = source.find_faults(tally)
        if tally.bits > (index.bits or 0):
            warnings.append(CUT_BITS.format(tally.bits, index.bits))
        warnings += unseen
        write_json(new / "index.json", msgspec.to_builtins(index))
        _write_files(source, records, tally, warnings, index.bits)
        _publish(prepared, outdated.fingerprint)
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


def _write_files(
    source: Source, records: Sequence[MaskRecord], tally: Tally, warnings: Sequence[str], bits: int | None
) -> None:
    """Write what is not there yet: masks and `index.json` are."""
    prepared, labels, new = source.prepared, source.labels, source.prepared.folder / NEW
    source.write_subset(new / prepared.subset_file.name)
    encoding = MaskEncoding(prepared.masks.encoding, labels)
    encoding.save(new)
    write_bytes(new / "report.md", source.report(tally, warnings).encode())
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
