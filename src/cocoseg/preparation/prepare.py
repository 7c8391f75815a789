"""Preparation: annotation file -> chosen images -> masks and the other files that prepared_folder.py lists.

Missing annotations and images are downloaded where that is allowed. A set is prepared once, and anew when its
inputs change.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from cocoseg.checks import how_to_fetch
from cocoseg.config import Config, DataConfig
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.files import locked, remove_parts, write_bytes, write_json
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.preparation import coco_file as coco_format
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.contact_sheet import EXAMPLES, write_contact_sheet
from cocoseg.preparation.image_files import missing_images
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.preparation.masks import draw_masks
from cocoseg.preparation.prepared_folder import PREVIEW, PreparationJob, claim, find_current, preparation_jobs
from cocoseg.preparation.report import DataWarning, Tally, as_markdown, build_report, find_warnings
from cocoseg.preparation.shapes import draw_shapes
from cocoseg.preparation.subset import choose, rank
from cocoseg.preparation.survey import sample

log = logging.getLogger(__name__)

NEW = "new.part"  # folder that all files are written to before they replace the old ones


class _Source(NamedTuple):
    """The annotation file, and the classes and images chosen from it."""

    coco: CocoFile
    labels: LabelMap
    images: list[Image]


def prepare(config: Config, *, may_download: bool = False) -> None:
    """Prepare the training set, and the validation set where it has a file of its own.

    Returns at once where everything is there and unchanged. One process at a time: others wait.

    Args:
        config: all settings.
        may_download: fetch what is missing, where `data.download` lets it.

    Raises:
        CocosegError: bad input; what had been prepared before is still whole then.
        IncompleteError: images could not be fetched; `failed.json` lists them, the next run takes up there.
    """
    fetches = may_download and config.data.fetches
    jobs = preparation_jobs(config)
    _draw_shapes(config.data)
    claim(jobs[0].folder)
    with locked(jobs[0].folder):
        for job in jobs:
            remove_parts(job.folder)
            shutil.rmtree(job.folder / NEW, ignore_errors=True)
        if fetches:
            _fetch_annotations(config.data, jobs)
        labels = None
        for job in jobs:
            labels = _prepare_set(job, config.prepare.workers, fetches, expected=labels)


def check_annotations(config: Config, *, may_download: bool = False) -> None:
    """Check all that `prepare` would read of the annotation files, and log the warnings; write nothing.

    Masks are drawn in memory; images need not be there.

    Args and errors as of `prepare`; only a missing annotation file is fetched.
    """
    jobs = preparation_jobs(config)
    _draw_shapes(config.data)
    if may_download and config.data.fetches:
        _fetch_annotations(config.data, jobs)
    labels = None
    for job in jobs:
        source = _read(job, labels)
        labels = source.labels
        tally = _draw(job, source, None, config.prepare.workers)
        log.info("%s: no errors in the annotations of %d images", job.annotation_file, len(source.images))
        _log_summary(labels, tally, find_warnings(source.coco, labels, tally))
        if missing := missing_images(source.images, job.image_dir):
            log.info("  %d of them are not in %s", len(missing), job.image_dir)


def _draw_shapes(data: DataConfig) -> None:
    if data.shapes is not None:
        draw_shapes(Path(data.root), images=data.shapes.images, seed=data.shapes.seed)


def _prepare_set(
    job: PreparationJob, workers: int | None, fetches: bool, expected: LabelMap | None
) -> LabelMap:
    fingerprint = job.fingerprint()
    if labels := find_current(job, fingerprint):
        _require_labels(job, labels, expected)
        log.info("%s: prepared already, nothing changed", job.folder)
        return labels
    begin = time.monotonic()
    source = _read(job, expected)
    if not (job.folder / "prepared.json").exists():
        write_json(job.folder / "prepared.json", {"complete": False})  # the folder is ours from here on
    _require_images(job, source.images, fetches)
    new = job.folder / NEW
    try:
        tally = _draw(job, source, new / "masks", workers)
        warnings = find_warnings(source.coco, source.labels, tally)
        _write_files(job, source, tally, warnings, new)
        _publish(job, fingerprint, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    log.info("%s: %d masks in %.1f s", job.folder / "masks", len(tally.masks), time.monotonic() - begin)
    _log_summary(source.labels, tally, warnings)
    log.info("  %s and %s show more", job.folder / "report.md", PREVIEW)
    return source.labels


def _read(job: PreparationJob, expected: LabelMap | None) -> _Source:
    """Read the annotation file and choose the images."""
    log.info("%s: reading", job.annotation_file)
    coco = coco_format.read(job.annotation_file)
    subset = job.data.subset
    labels = LabelMap.from_categories(coco.categories, subset.categories, job.data.labels)
    _require_labels(job, labels, expected)
    images = choose(
        coco,
        size=job.size,
        seed=subset.seed,
        class_of=labels.index_of,
        keep_empty=subset.keep_empty,
        min_pixels=subset.min_pixels,
    )
    return _Source(coco, labels, images)


def _draw(job: PreparationJob, source: _Source, folder: Path | None, workers: int | None) -> Tally:
    """Draw the masks; without a folder only to check the annotations."""
    tally = Tally()
    subset, images = job.data.subset, source.images
    surveyed = sample(images, subset.seed) if folder is not None else ()
    rules = source.labels, job.masks, subset.other
    for record in draw_masks(source.coco, images, job.image_dir, folder, *rules, workers, surveyed):
        tally.add(record)
    return tally


def _fetch_annotations(data: DataConfig, jobs: Sequence[PreparationJob]) -> None:
    missing = [job.annotation_file for job in jobs if not job.annotation_file.is_file()]
    if not missing:
        return
    if data.annotations_url is None:
        raise CocosegError(
            f"{missing[0]}: no such file, and data.annotations_url, to fetch it from, is not set"
        )
    from cocoseg.preparation.download import fetch_annotations  # urllib3 takes 0.1 s to import

    fetch_annotations(data.annotations_url, *missing)


def _require_images(job: PreparationJob, images: Sequence[Image], fetches: bool) -> None:
    """Fetch the images that are missing, or tell the user how; broken ones are found when masks are drawn."""
    failed_file = job.folder / "failed.json"
    failed_file.unlink(missing_ok=True)  # an earlier run may have left it
    data, missing = job.data, missing_images(images, job.image_dir)
    if not missing:
        return
    if not fetches:
        example = next((image for image in missing if image.coco_url or data.images_url), None)
        if example is not None:
            raise CocosegError(
                f"{len(missing)} of {len(images)} chosen images are missing, "
                f"{job.image_dir / example.file_name} for one; {how_to_fetch(data)}"
            )
        return
    from cocoseg.preparation.download import fetch_images  # urllib3 takes 0.1 s to import

    log.info("%s: fetching %d images", job.image_dir, len(missing))
    failures = fetch_images(missing, job.image_dir, base_url=data.images_url, max_bytes=data.max_image_bytes)
    if failures:
        write_json(failed_file, {"failed": [asdict(failure) for failure in failures]})
        raise IncompleteError(
            f"{len(failures)} of {len(images)} images could not be fetched ({failures[0].file_name}: "
            f"{failures[0].reason}); {failed_file} lists them; run prepare.py again to go on"
        )


def _require_labels(job: PreparationJob, labels: LabelMap, expected: LabelMap | None) -> None:
    if expected is not None and (difference := expected.difference(labels)):
        raise CocosegError(f"{job.annotation_file}: other labels than the training file's: {difference}")


def _write_files(
    job: PreparationJob, source: _Source, tally: Tally, warnings: Sequence[DataWarning], folder: Path
) -> None:
    """Write all but the masks, which are in the folder already."""
    labels = source.labels
    source.coco.write_subset({image.id for image in source.images}, folder / job.subset_name)
    encoding = MaskEncoding(job.masks.encoding, labels)
    encoding.save(folder)
    masks = {image.file_name: f"masks/{tally.masks[image.file_name]}" for image in source.images}
    index = {
        "pixels": [tally.pixels[i] for i in range(len(labels))],
        "ignored_pixels": tally.pixels[IGNORE_INDEX],
        "pairs": [{"image": image, "mask": mask} for image, mask in masks.items()],
    }
    write_json(folder / "index.json", index)
    report = build_report(source.coco, source.images, labels, job.masks, tally, warnings)
    write_json(folder / "report.json", report)
    write_bytes(folder / "report.md", as_markdown(report).encode())
    seed = job.data.subset.seed  # the images of lowest rank, those that show something first
    ranked = sorted(source.images, key=lambda image: (image.file_name in tally.empty, rank(seed, image.id)))
    examples = [image.file_name for image in ranked[:EXAMPLES]]
    pairs = [(job.image_dir / name, folder / masks[name]) for name in examples]
    write_contact_sheet(folder / PREVIEW, pairs, encoding)


def _publish(job: PreparationJob, fingerprint: dict[str, Any], new: Path) -> None:
    """Replace what was there; `prepared.json` says so first and last, so a kill between is noticed."""
    write_json(job.folder / "prepared.json", {"complete": False})
    for path in new.iterdir():
        target = job.folder / path.name
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        path.replace(target)
    write_json(job.folder / "prepared.json", {"complete": True, **fingerprint})


def _log_summary(labels: LabelMap, tally: Tally, warnings: Sequence[DataWarning]) -> None:
    pixels = tally.pixels
    log.info(
        "  %d of %d classes occur; %.1f %% of the pixels are background, %.1f %% ignored",
        sum(index > 0 for index in tally.images),
        len(labels) - 1,
        100 * pixels[0] / pixels.total(),
        100 * pixels[IGNORE_INDEX] / pixels.total(),
    )
    for warning in warnings:
        log.warning("  warning: %s", warning)
