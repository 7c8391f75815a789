"""Prepared folders: their paths, the input they are made from, whether they are still current.

A prepared folder holds

    subset_train_annotations.json   COCO file of the chosen images
    masks/                          a PNG per image
    labels.json                     the classes, and how the masks hold them
    index.json                      image and mask of each pair, pixels per class
    report.json, report.md          counts, warnings, and what overlaps hide
    preview.png                     some images with their masks laid over them
    prepared.json                   the settings and the input that all this was made from
    arrays/                         images and masks decoded for training, see cache.py
    failed.json                     images that could not be fetched; there is nothing else new then
    val/                            the same for a validation file of its own, where there is one
"""

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cocoseg.config import Config, DataConfig, MasksConfig
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.settings import as_dict

PREVIEW = "preview.png"
LAYOUT = 2  # counted up when what is written changes: older folders are then made anew


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder and the images that belong to it."""

    folder: Path
    image_dir: Path
    subset_file: Path


@dataclass(frozen=True)
class PreparationJob:
    """One annotation file to prepare, and the settings that shape the result."""

    folder: Path
    image_dir: Path
    annotation_file: Path
    subset_name: str
    size: int | None
    data: DataConfig
    masks: MasksConfig

    def fingerprint(self) -> dict[str, Any]:
        """All that the result depends on; of the annotation file its size and time of change."""
        status = self.annotation_file.stat()
        return {
            "layout": LAYOUT,
            "annotations": str(self.annotation_file.resolve()),
            "annotations_bytes": status.st_size,
            "annotations_changed_ns": status.st_mtime_ns,
            "images": str(self.image_dir.resolve()),
            "subset": {**as_dict(self.data.subset), "size": self.size},
            "labels": _plain_labels(self.data),
            "masks": as_dict(self.masks),
        }


def prepared_sets(config: Config) -> tuple[PreparedSet, PreparedSet | None]:
    """The training set, and the validation set that has a file of its own, as they are once prepared."""
    train, *val = (
        PreparedSet(job.folder, job.image_dir, job.folder / job.subset_name)
        for job in preparation_jobs(config)
    )
    return train, val[0] if val else None


def preparation_jobs(config: Config) -> list[PreparationJob]:
    """The training file's job, then that of a validation file of its own, where there is one."""
    data, folder = config.data, prepared_dir(config)
    files = [(folder, data.images, data.annotations, "train", data.subset.size)]
    if data.val_annotations is not None:  # all images are taken
        files.append((folder / "val", data.val_images or data.images, data.val_annotations, "val", None))
    return [
        PreparationJob(
            path, Path(images), Path(annotations), f"subset_{name}_annotations.json", size, data, config.masks
        )
        for path, images, annotations, name, size in files
    ]


def prepared_dir(config: Config) -> Path:
    """The folder to prepare: the one set, else one of its own for each combination of settings."""
    data = config.data
    if data.prepared_dir is not None:
        return Path(data.prepared_dir)
    paths = [data.images, data.annotations, data.val_images, data.val_annotations]
    key = json.dumps(
        [
            [p and str(Path(p).resolve()) for p in paths],
            as_dict(data.subset),
            _plain_labels(data),
            as_dict(config.masks),
        ],
        sort_keys=True,
    )
    return (
        Path("prepared") / f"{Path(data.annotations).stem}-{blake2b(key.encode(), digest_size=4).hexdigest()}"
    )


def _plain_labels(data: DataConfig) -> Any:
    """`data.labels` for comparison; the order of groups counts, which a JSON object would not keep."""
    return data.labels if isinstance(data.labels, str) else [list(item) for item in data.labels.items()]


def claim(folder: Path) -> None:
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


def find_current(job: PreparationJob, fingerprint: dict[str, Any]) -> LabelMap | None:
    """The labels of what is prepared already, or None where anything is missing, damaged or out of date."""
    try:
        if json.loads((job.folder / "prepared.json").read_bytes()) != {"complete": True, **fingerprint}:
            return None
        labels = MaskEncoding.load(job.folder).labels
        pairs = json.loads((job.folder / "index.json").read_bytes())["pairs"]
        files = [job.folder / name for name in (job.subset_name, "report.json", "report.md", PREVIEW)]
        files += [
            path for pair in pairs for path in (job.folder / pair["mask"], job.image_dir / pair["image"])
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return labels if all(path.is_file() for path in files) else None
