"""Prepared folders: their paths, the input they are made from, whether they are still current.

A prepared folder holds

    subset_train_annotations.json   COCO file of the chosen images, where they have an annotation file
    masks/                          a PNG per image
    labels.json                     the classes, and how the masks hold them
    index.json                      image and mask of each pair, pixels per class, classes without any, and
                                    the reading of the images: EXIF rotation and bits
    report.md                       counts, warnings, and what overlaps hide
    preview.png                     some images with their masks laid over them
    prepared.json                   the settings and the input that all this was made from
    arrays/                         images and masks decoded for training, see cache.py
    failed.json                     images that could not be fetched; there is nothing else new then
    val/                            the same for a validation file of its own, where there is one
    extra-<key of places>/          the same for each entry of `data.extra`
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from cocoseg.config import Bits, Config, DataConfig, MasksConfig
from cocoseg.config_checks import as_dict
from cocoseg.errors import CocosegError
from cocoseg.files import PART, is_empty, key_of_files, locked, make_folders, read_json, writing_to
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.labels import LabelMap
from cocoseg.mask_images.pairs import find_pairs
from cocoseg.preparation.coco_file import is_inside, png_folder

PREVIEW = "preview.png"
NEW = "new.part"  # folder that all files are written to before they replace the old ones
MASK = "_mask_cats_"  # part of the name of every mask
EXTRA = "extra"  # name of the sets of `data.extra`
LAYOUT = 5  # counted up when what is written changes: older folders are then made anew


class Pair(msgspec.Struct, gc=False, omit_defaults=True):
    """An image and its mask, below their folders, and the EXIF orientation by which both are turned."""

    image: str
    mask: str
    orientation: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1


class Index(msgspec.Struct, kw_only=True):
    """The content of `index.json`.

    Attributes:
        pixels: number for each class index, in all masks together.
        unseen: why classes have no pixel, see `find_unseen`.
        exif: apply or ignore, as images with an EXIF rotation are read; None where there are none.
        bits: that images of more than 8 are scaled from; None where there are none.
    """

    pixels: list[int] = []
    ignored_pixels: int = 0
    unseen: list[str] = []
    exif: Literal["apply", "ignore"] | None = None
    bits: Bits | None = None
    pairs: list[Pair]


@dataclass(frozen=True)
class PreparedSet:
    """A prepared folder, and the input that it is made from.

    Attributes:
        name: train, val or extra.
        annotation_file, mask_dir: what is on the images; None where the other is given.
        size: number of images to choose; None for all that qualify.
        keep_empty: images without annotations qualify; they show false alarms in a validation.
    """

    name: str
    folder: Path
    image_dir: Path
    annotation_file: Path | None
    mask_dir: Path | None
    size: int | None
    keep_empty: bool
    data: DataConfig
    masks: MasksConfig

    @property
    def origin(self) -> Path:
        """The annotation file or the folder of the masks, for messages."""
        origin = self.annotation_file or self.mask_dir
        assert origin is not None  # as has been checked
        return origin

    @property
    def subset_file(self) -> Path:
        """The COCO file of the chosen images."""
        return self.folder / f"subset_{self.name}_annotations.json"

    def settings(self) -> dict[str, Any]:
        """The part of the fingerprint that is known without a look at the files."""
        data, has_masks = self.data, self.mask_dir is not None
        return {
            "layout": LAYOUT,
            "mask_images" if has_masks else "annotations": str(self.origin.resolve()),
            **(_of_mask_images(data) if has_masks else {}),
            "images": str(self.image_dir.resolve()),
            "subset": {**as_dict(data.subset), "size": self.size, "keep_empty": self.keep_empty},
            "labels": _plain_labels(data),
            "masks": as_dict(self.masks),
            "exif": data.exif,
            "bits": data.bits,
            "file_names": data.file_names,
        }

    def fingerprint(self) -> dict[str, Any]:
        """All that the result depends on but PNGs; of files that are read their sizes and times of change.

        Raises:
            OSError, CocosegError: one is missing.
        """
        data, found = self.data, self.settings()
        if self.annotation_file is not None:
            status = self.annotation_file.stat()
            found |= {"annotations_bytes": status.st_size, "annotations_changed_ns": status.st_mtime_ns}
        if self.mask_dir is not None:
            pairs = find_pairs(self.image_dir, self.mask_dir, data, self.name)
            files = [self.image_dir / pair.image for pair in pairs]
            files += [self.mask_dir / pair.mask for pair in pairs]
            files += [Path(data.classes)] if isinstance(data.classes, str) else []
            found["files"] = key_of_files(files, [pairs])
        return found

    def of_pngs(self) -> dict[str, Any]:
        """The part of the fingerprint that sets of a panoptic file have in addition."""
        folder = png_folder(self.origin)
        files = sorted(folder.rglob("*.png"))
        return {"pngs": key_of_files(files, [str(file.relative_to(folder)) for file in files])}


def prepared_sets(config: Config) -> tuple[PreparedSet, PreparedSet | None]:
    """The training set, and the validation set where it has a file of its own."""
    data, folder = config.data, prepared_dir(config)
    subset = data.subset
    settings = data, config.masks
    assert data.images is not None  # as has been checked
    image_dir, annotations, masks = Path(data.images), _path(data.annotations), _path(data.masks)
    train = PreparedSet(
        *("train", folder, image_dir, annotations, masks, subset.size, subset.keep_empty), *settings
    )
    annotations, masks = _path(data.val_annotations), _path(data.val_masks)
    if annotations is masks is None:
        return train, None
    image_dir = Path(data.val_images or data.images)
    val = PreparedSet("val", folder / "val", image_dir, annotations, masks, None, True, *settings)
    return train, val


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def extra_sets(config: Config) -> list[PreparedSet]:
    """The sets of `data.extra`, in folders below that of the training set, whose classes they have."""
    sets = []
    for extra in config.data.extra:
        places = Path(extra.images), _path(extra.annotations), _path(extra.masks)
        key = _hash([str(place.resolve()) for place in places if place is not None])
        folder = prepared_dir(config) / f"{EXTRA}-{key}"
        sets.append(PreparedSet(EXTRA, folder, *places, None, True, config.data, config.masks))
    return sets


def all_sets(config: Config) -> list[PreparedSet]:
    """All sets of a configuration, the training set first, which the others lie within."""
    return [one for one in (*prepared_sets(config), *extra_sets(config)) if one is not None]


def prepared_dir(config: Config) -> Path:
    """The folder to prepare: the one set, else one of its own for each combination of settings."""
    data = config.data
    if data.prepared_dir is not None:
        return Path(data.prepared_dir)
    paths = [data.images, data.annotations, data.val_images, data.val_annotations]
    places = [path and str(Path(path).resolve()) for path in paths]
    settings = [places, as_dict(data.subset), _plain_labels(data), as_dict(config.masks)]
    settings += [data.exif, data.bits, data.file_names]
    if data.masks is not None:
        settings += [str(Path(path).resolve()) for path in (data.masks, data.val_masks) if path is not None]
        settings.append(_of_mask_images(data))
    return Path("prepared") / f"{Path(str(data.annotations or data.masks)).stem}-{_hash(settings)}"


def _hash(settings: Any) -> str:
    return blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()


def _of_mask_images(data: DataConfig) -> dict[str, Any]:
    """The settings that say how mask images are read."""
    names = ("image_suffix", "mask_suffix", "classes", "ignore")
    return {name: getattr(data, name) for name in names}


def _plain_labels(data: DataConfig) -> Any:
    """`data.labels` for comparison; the order of groups counts, which a JSON object would not keep."""
    return data.labels if isinstance(data.labels, str) else [list(item) for item in data.labels.items()]


@contextmanager
def claimed(sets: Sequence[PreparedSet]) -> Iterator[None]:
    """Make and lock the folder of the first set, which holds those of the others.

    Folders that are made here are removed again where the block writes nothing.

    Raises:
        CocosegError: a folder holds files of others, or can't be written to.
    """
    for folder in (prepared.folder for prepared in sets):
        if folder.is_dir() and not is_empty(folder) and not _is_ours(folder):
            raise CocosegError(
                f"data.prepared_dir: {folder} holds files that prepare.py did not write; name another folder"
            )
    folder = sets[0].folder
    with writing_to(folder, key="data.prepared_dir"):
        remove_empty = make_folders(folder)
    try:
        with locked(folder):
            yield
    finally:
        remove_empty()


def _is_ours(folder: Path) -> bool:
    try:
        content = read_json(folder / "prepared.json")
    except ValueError:  # empty after a power failure, say
        return True
    except (OSError, RecursionError):
        return False
    return not isinstance(content, dict) or "complete" in content


def is_prepared(config: Config) -> bool:
    """Tell whether nothing is to be prepared or cleared away. Writes nothing: folders may be read-only."""
    sets = all_sets(config)
    if any((prepared.folder / NEW).exists() or [*prepared.folder.glob(f"{PART}*")] for prepared in sets):
        return False  # what a killed process left
    found = [find_current(prepared) for prepared in sets]
    labels = [one for one in found if one is not None]
    return len(labels) == len(sets) and not any(labels[0].difference(others) for others in labels[1:])


def has_settings(prepared: PreparedSet) -> bool:
    """Whether a folder was prepared by these settings, by its `prepared.json`; no other file is looked at."""
    try:
        found = read_json(prepared.folder / "prepared.json", dict[str, Any])
    except (OSError, ValueError):
        return False
    return found == {**found, "complete": True, **prepared.settings()}


def find_current(prepared: PreparedSet) -> LabelMap | None:
    """The labels of what is prepared already, or None where anything is missing, damaged or out of date."""
    folder = prepared.folder
    try:
        found = read_json(folder / "prepared.json", dict[str, Any])
        pngs = prepared.of_pngs() if "pngs" in found else {}
        if found != {"complete": True, **prepared.fingerprint(), **pngs}:
            return None
        labels, pairs = MaskEncoding.load(folder).labels, read_index(folder).pairs
    except (OSError, ValueError):  # the annotation file may be missing, too
        return None
    files = [folder / "report.md", folder / PREVIEW]
    files += [] if prepared.annotation_file is None else [prepared.subset_file]
    files += [folder / pair.mask for pair in pairs]
    files += [prepared.image_dir / pair.image for pair in pairs]
    return labels if all(path.is_file() for path in files) else None


def read_index(folder: Path) -> Index:
    """Read the `index.json` of a prepared folder.

    Raises:
        CocosegError: it is missing or damaged, or names a file that is not in its folder.
    """
    try:
        index = read_json(folder / "index.json", Index)
        for name in (name for pair in index.pairs for name in (pair.image, pair.mask)):
            if not is_inside(name):  # files of the same names may be written elsewhere
                raise ValueError(f"{name!r} leads out of it")
        return index
    except (OSError, ValueError) as error:
        raise CocosegError(f"{folder}: not a prepared folder ({error}); run prepare.py") from error


def remove_masks(folder: Path) -> None:
    """Remove the masks that the folder's index lists; files of others stay where they are."""
    try:
        masks = [folder / pair.mask for pair in read_index(folder).pairs if MASK in pair.mask]
    except CocosegError:
        masks = []
    for mask in masks:
        mask.unlink(missing_ok=True)
    subfolders = sorted(path for path in (folder / "masks").glob("**/") if path.is_dir())
    for emptied in reversed(subfolders):
        with suppress(OSError):  # not empty
            emptied.rmdir()
