"""Preparation: annotations -> subset -> images -> masks -> labels.json, index.json; what is missing of the
first and third is fetched where allowed. Done once, redone when its inputs change.

A prepared folder holds

    subset_train_annotations.json   COCO file of the chosen images
    masks/                          a PNG per image
    labels.json                     the classes, and how the masks hold them
    index.json                      image and mask of each pair, pixels per class
    prepared.json                   the settings and the input that all this was made from
    failed.json                     images that could not be fetched; there is nothing else new then
    val/                            the same for a validation file of its own, where there is one
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock

from cocoseg import coco as coco_format
from cocoseg.coco import CocoFile, Image
from cocoseg.config import Config, DataConfig, MasksConfig, how_to_fetch
from cocoseg.encoding import MaskEncoding
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.files import write_json
from cocoseg.images import missing_images
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.masks import MaskRecord, count_pixels, draw_masks
from cocoseg.shapes import draw_shapes
from cocoseg.subset import choose

log = logging.getLogger(__name__)

LAYOUT = 1  # counted up when what is written changes: older folders are then made anew


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder and the images that belong to it."""

    folder: Path
    image_dir: Path
    subset_file: Path


@dataclass(frozen=True)
class _Job:
    """One annotation file to prepare, and the settings that shape the result."""

    folder: Path
    image_dir: Path
    annotation_file: Path
    subset_name: str
    size: int | None
    data: DataConfig
    masks: MasksConfig

    def result(self) -> PreparedSet:
        return PreparedSet(self.folder, self.image_dir, self.folder / self.subset_name)

    def fingerprint(self) -> dict[str, Any]:
        """What the result depends on; the annotation file by its size and time of change."""
        status = self.annotation_file.stat()
        return {
            "layout": LAYOUT,
            "annotations": str(self.annotation_file.resolve()),
            "annotations_bytes": status.st_size,
            "annotations_changed_ns": status.st_mtime_ns,
            "images": str(self.image_dir.resolve()),
            "subset": {**asdict(self.data.subset), "size": self.size},
            "masks": asdict(self.masks),
        }


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
    data = config.data
    if data.shapes is not None:
        draw_shapes(Path(data.root), images=data.shapes.images, seed=data.shapes.seed)
    fetches = may_download and data.fetches
    train, val = _jobs(config)
    _claim(train.folder)
    with FileLock(train.folder / ".lock"):
        if fetches:
            _fetch_annotations(data, [job.annotation_file for job in (train, val) if job])
        labels = _prepare_set(train, config.prepare.workers, fetches)
        if val is not None:
            _prepare_set(val, config.prepare.workers, fetches, expected=labels)


def prepared_sets(config: Config) -> tuple[PreparedSet, PreparedSet | None]:
    """Where the training set, and the validation set that has a file of its own, lie once prepared."""
    train, val = _jobs(config)
    return train.result(), val.result() if val else None


def _jobs(config: Config) -> tuple[_Job, _Job | None]:
    data, folder = config.data, prepared_dir(config)
    images, annotations = Path(data.images), Path(data.annotations)
    train = _Job(
        folder, images, annotations, "subset_train_annotations.json", data.subset.size, data, config.masks
    )
    if data.val_annotations is None:
        return train, None
    # The size is that of the training subset; validation takes all its images.
    images, annotations = Path(data.val_images or data.images), Path(data.val_annotations)
    val = _Job(folder / "val", images, annotations, "subset_val_annotations.json", None, data, config.masks)
    return train, val


def prepared_dir(config: Config) -> Path:
    """The folder to prepare: the one set, else one of its own for each combination of settings."""
    data = config.data
    if data.prepared_dir is not None:
        return Path(data.prepared_dir)
    places = [data.images, data.annotations, data.val_images, data.val_annotations]
    key = json.dumps(
        [[p and str(Path(p).resolve()) for p in places], asdict(data.subset), asdict(config.masks)],
        sort_keys=True,
    )
    return (
        Path("prepared") / f"{Path(data.annotations).stem}-{blake2b(key.encode(), digest_size=4).hexdigest()}"
    )


def _claim(folder: Path) -> None:
    """Make the folder, or refuse one that holds something else."""
    ours = (folder / "prepared.json").exists()
    if folder.is_dir() and not ours and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise CocosegError(
            f"data.prepared_dir: {folder} holds files that prepare.py did not write; name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CocosegError(f"data.prepared_dir: {folder} can't be made ({error.strerror})") from error


def _prepare_set(job: _Job, workers: int | None, fetches: bool, expected: LabelMap | None = None) -> LabelMap:
    fingerprint = job.fingerprint()
    if labels := _find_current(job, fingerprint):
        _require_labels(job, labels, expected)
        log.info("%s: prepared already, nothing changed", job.folder)
        return labels
    begin = time.monotonic()
    log.info("%s: reading", job.annotation_file)
    coco = coco_format.read(job.annotation_file)
    labels = LabelMap.from_categories(coco.categories, job.data.subset.categories)
    _require_labels(job, labels, expected)
    images = choose(
        coco,
        size=job.size,
        seed=job.data.subset.seed,
        category_ids=labels.index_of.keys(),
        keep_empty=job.data.subset.keep_empty,
    )
    if not (job.folder / "prepared.json").exists():
        write_json(job.folder / "prepared.json", {"complete": False})  # the folder is ours from here on
    _require_images(job, images, fetches)
    drawing = job.folder / "masks.part"
    shutil.rmtree(drawing, ignore_errors=True)
    try:
        records = draw_masks(coco, images, job.image_dir, drawing, labels, job.masks, workers)
    except BaseException:
        shutil.rmtree(drawing, ignore_errors=True)
        raise
    pixels = count_pixels(records)
    _publish(job, fingerprint, coco, {image.id for image in images}, labels, records, pixels)
    _summarise(job, labels, records, pixels, time.monotonic() - begin)
    return labels


def _fetch_annotations(data: DataConfig, files: list[Path]) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing and data.annotations_url is None:
        raise CocosegError(
            f"{missing[0]}: no such file, and data.annotations_url, to fetch it from, is not set"
        )
    if missing:
        from cocoseg.archive import fetch_annotations  # here: its HTTP client takes 0.2 s to import

        fetch_annotations(data.annotations_url, *files)


def _require_images(job: _Job, images: Sequence[Image], fetches: bool) -> None:
    """Fetch the images that are missing, or tell the user how; broken ones are found when masks are drawn."""
    failed_file = job.folder / "failed.json"
    failed_file.unlink(missing_ok=True)  # of an earlier run
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
    from cocoseg.download import fetch_images  # here: its HTTP client takes 0.2 s to import

    log.info("%s: fetching %d images", job.image_dir, len(missing))
    failures = fetch_images(missing, job.image_dir, base_url=data.images_url, max_bytes=data.max_image_bytes)
    if failures:
        write_json(failed_file, {"failed": [asdict(failure) for failure in failures]})
        raise IncompleteError(
            f"{len(failures)} of {len(images)} images could not be fetched ({failures[0].file_name}: "
            f"{failures[0].reason}); {failed_file} lists them; run prepare.py again to go on"
        )


def _require_labels(job: _Job, labels: LabelMap, expected: LabelMap | None) -> None:
    if expected is not None and (difference := expected.difference(labels)):
        raise CocosegError(f"{job.annotation_file}: other labels than the training file's: {difference}")


def _find_current(job: _Job, fingerprint: dict[str, Any]) -> LabelMap | None:
    """The labels of what is prepared already, or None where anything is missing, damaged or out of date."""
    try:
        if json.loads((job.folder / "prepared.json").read_bytes()) != {"complete": True, **fingerprint}:
            return None
        labels = MaskEncoding.load(job.folder).labels
        pairs = json.loads((job.folder / "index.json").read_bytes())["pairs"]
        files = [job.folder / job.subset_name]
        files += [
            path for pair in pairs for path in (job.folder / pair["mask"], job.image_dir / pair["image"])
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return labels if all(path.is_file() for path in files) else None


def _publish(
    job: _Job,
    fingerprint: dict[str, Any],
    coco: CocoFile,
    image_ids: set[int],
    labels: LabelMap,
    records: Sequence[MaskRecord],
    pixels: Counter[int],
) -> None:
    """Replace what was there; `prepared.json` says so first and last, so a kill between is noticed."""
    folder = job.folder
    write_json(folder / "prepared.json", {"complete": False})
    shutil.rmtree(folder / "masks", ignore_errors=True)
    (folder / "masks.part").rename(folder / "masks")
    coco.write_subset(image_ids, folder / job.subset_name)
    MaskEncoding(job.masks.encoding, labels).save(folder)
    index = {
        "pixels": [pixels[i] for i in range(len(labels))],
        "ignored_pixels": pixels[IGNORE_INDEX],
        "pairs": [{"image": record.image, "mask": f"masks/{record.mask}"} for record in records],
    }
    write_json(folder / "index.json", index)
    write_json(folder / "prepared.json", {"complete": True, **fingerprint})


def _summarise(
    job: _Job, labels: LabelMap, records: Sequence[MaskRecord], pixels: Counter[int], seconds: float
) -> None:
    seen = sum(pixels[i] > 0 for i in range(1, len(labels)))
    skipped = sum(record.skipped for record in records)
    log.info("%s: %d masks in %.1f s", job.folder / "masks", len(records), seconds)
    log.info(
        "  %d of %d classes occur; %.1f %% of the pixels are background, %.1f %% ignored",
        seen,
        len(labels) - 1,
        100 * pixels[0] / pixels.total(),
        100 * pixels[IGNORE_INDEX] / pixels.total(),
    )
    if skipped:
        log.warning("  %d annotations have no segmentation that can be drawn and were skipped", skipped)
