"""Prepared folders: their paths, the input that they are made from, and the check that they are up to date.

A prepared folder holds

    subset_train_annotations.json   COCO file of the chosen images, where there is an annotation file
    masks/                          a PNG per image
    labels.json                     the classes, and the encoding of the masks
    index.json                      image and mask of each pair, pixels of each class, classes without any,
                                    EXIF rotation and bits of the images
    report.md                       counts, warnings, and the pixels that overlaps hide
    preview.png                     some images with their masks laid over them
    prepared.json                   the settings and the input that all this was made from
    arrays/                         images and masks decoded for training, see cache.py
    failed.json                     images that could not be fetched; the other files are not changed then
    val/                            the same for a validation set with files of its own
    extra-<key of paths>/           the same for each entry of `data.extra`
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
LAYOUT = 5  # version of the files; folders of another version are prepared anew


class Pair(msgspec.Struct, gc=False, omit_defaults=True):
    """An image and its mask, below their folders, and the EXIF orientation by which both are turned."""

    image: str
    mask: str
    orientation: Annotated[int, msgspec.Meta(ge=1, le=8)] = 1


class Index(msgspec.Struct, kw_only=True):
    """The content of `index.json`.

    Attributes:
        pixels: number of pixels of each class in all masks together, by class index; 0 is background.
        unseen: reasons why classes have no pixel, see `find_unseen`.
        exif: apply or ignore, as most images with an EXIF rotation are read; None where there are none.
        bits: those that images of more than 8 bits are scaled from; None where there are none.
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
        annotation_file, mask_dir: one of both; the other is None.
        size: number of images to choose; None for all that qualify.
        keep_empty: images without annotations qualify; in a validation set they show false alarms.
    """

    name: str
    folder: Path
    image_dir: Path
    annotation_file: Path | None
    mask_dir: Path | None
    data: DataConfig
    masks: MasksConfig
    size: int | None = None
    keep_empty: bool = True

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
        """All that the prepared files depend on, the PNGs of a panoptic file apart.

        Input files count by their sizes and modification times.

        Raises:
            OSError, CocosegError: a file is missing.
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

    def fingerprint_of_pngs(self) -> dict[str, Any]:
        """The further part of the fingerprint of a panoptic file."""
        folder = png_folder(self.origin)
        files = sorted(folder.rglob("*.png"))
        return {"pngs": key_of_files(files, [str(file.relative_to(folder)) for file in files])}


def prepared_sets(config: Config) -> tuple[PreparedSet, PreparedSet | None]:
    """The training set, and the validation set where it has files of its own."""
    data, folder, subset = config.data, prepared_dir(config), config.data.subset
    train = _set(config, "train", folder, data.images, data.annotations, data.masks)
    train = replace(train, size=subset.size, keep_empty=subset.keep_empty)
    if data.val_annotations is data.val_masks is None:
        return train, None
    paths = data.val_images or data.images, data.val_annotations, data.val_masks
    return train, _set(config, "val", folder / "val", *paths)


def extra_sets(config: Config) -> list[PreparedSet]:
    """The sets of `data.extra`. Their classes are those of the training set."""
    sets = []
    for extra in config.data.extra:
        paths = extra.images, extra.annotations, extra.masks
        key = _hash([str(Path(path).resolve()) for path in paths if path is not None])
        sets.append(_set(config, EXTRA, prepared_dir(config) / f"{EXTRA}-{key}", *paths))
    return sets


def _set(config: Config, name: str, folder: Path, *paths: str | None) -> PreparedSet:
    images, annotations, masks = (None if path is None else Path(path) for path in paths)
    assert images is not None  # as has been checked
    return PreparedSet(name, folder, images, annotations, masks, config.data, config.masks)


def all_sets(config: Config) -> list[PreparedSet]:
    """All sets of a configuration: first the training set, in whose folder are those of the others."""
    return [one for one in (*prepared_sets(config), *extra_sets(config)) if one is not None]


def prepared_dir(config: Config) -> Path:
    """The folder of the training set: `data.prepared_dir`, else one for each combination of settings."""
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
    """The settings by which mask images are read."""
    names = ("image_suffix", "mask_suffix", "classes", "ignore")
    return {name: getattr(data, name) for name in names}


def _plain_labels(data: DataConfig) -> Any:
    """`data.labels` for comparison, with groups as a list, because their order counts."""
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
    except ValueError:  # a power failure may leave an empty file
        return True
    except (OSError, RecursionError):
        return False
    return not isinstance(content, dict) or "complete" in content


def is_prepared(config: Config) -> bool:
    """Tell whether nothing is to be prepared or cleaned up. Nothing is written: folders may be read-only."""
    sets = all_sets(config)
    if any((prepared.folder / NEW).exists() or [*prepared.folder.glob(f"{PART}*")] for prepared in sets):
        return False  # a killed process left them
    found = [find_current(prepared) for prepared in sets]
    labels = [one for one in found if one is not None]
    return len(labels) == len(sets) and not any(labels[0].difference(others) for others in labels[1:])


def has_settings(prepared: PreparedSet) -> bool:
    """Tell whether a folder was prepared by these settings, by its `prepared.json` alone."""
    try:
        found = read_json(prepared.folder / "prepared.json", dict[str, Any])
    except (OSError, ValueError):
        return False
    return found == {**found, "complete": True, **prepared.settings()}


def find_current(prepared: PreparedSet) -> LabelMap | None:
    """The labels of a set that is prepared already; None where files are missing, damaged or out of date."""
    folder = prepared.folder
    try:
        found = read_json(folder / "prepared.json", dict[str, Any])
        pngs = prepared.fingerprint_of_pngs() if "pngs" in found else {}
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
    """Remove the masks that `index.json` lists; other files stay."""
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
