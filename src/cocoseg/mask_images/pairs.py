"""Pairs of image and mask, whose names below their folders differ in ending and suffix at most."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cocoseg.config import DataConfig
from cocoseg.errors import CocosegError, printable
from cocoseg.files import files_below
from cocoseg.images.similar_names import endings
from cocoseg.mask_images.values import LOSSLESS

# Suffixes, the ends of names before the dot, to try where none is given. Those that pair most are taken.
IMAGE_SUFFIXES = ("", "_leftImg8bit", "_image", "_img", "_rgb", "_sat")
MASK_SUFFIXES = (
    *("", "_mask", "_masks", "-mask", "_label", "_labels", "_labelIds", "_gtFine_labelIds"),
    *("_gtFine_labelTrainIds", "_labelTrainIds", "_seg", "_gt", "_L"),
)
FIRST = 3  # names that an error lists at most


class MaskPair(NamedTuple):
    """The names of an image and of its mask, below their folders."""

    image: str
    mask: str


def find_pairs(image_dir: Path, mask_dir: Path, data: DataConfig, name: str = "train") -> list[MaskPair]:
    """Pair all images below a folder with the masks below another, in the order of their names.

    Args:
        data: `image_suffix` and `mask_suffix` are used; None for one of the usual suffixes.
        name: train, val or extra, for messages.

    Raises:
        CocosegError: an image or a mask has no partner, or several.
    """
    begin = {"val": "data.val_", "extra": "data.extra: "}.get(name, "data.")
    image_key, mask_key = (f"{begin}{folder}" for folder in ("images", "masks"))
    images = _list(image_dir, mask_dir, endings(), image_key)
    listed = _list(mask_dir, image_dir, endings(), mask_key)
    masks = [file for file in listed if Path(file).suffix.lower() in endings(LOSSLESS)]
    if not images:
        raise CocosegError(f"{image_key}: no images in {image_dir}")
    if not masks:
        lossy = f"; {listed[0]} is of a lossy format, which can't hold a mask" if listed else ""
        raise CocosegError(f"{mask_key}: no masks in {mask_dir}{lossy}; give PNG files")
    image_of: dict[str, list[str]] = {}
    mask_of: dict[str, list[str]] = {}
    paired = 0
    for mask_suffix in MASK_SUFFIXES if data.mask_suffix is None else (data.mask_suffix,):
        suffixed = [name for name in masks if _stem(name).endswith(mask_suffix)]
        candidates = sorted({*images} - {*suffixed}) if image_dir.resolve() == mask_dir.resolve() else images
        if data.image_suffix is not None:
            candidates = [name for name in candidates if _stem(name).endswith(data.image_suffix)]
        if paired == len(images):
            break  # no other suffixes can pair more
        found = _by_stem(suffixed, mask_suffix)
        for image_suffix in IMAGE_SUFFIXES if data.image_suffix is None else (data.image_suffix,):
            by_stem = _by_stem(candidates, image_suffix)
            if (count := len(by_stem.keys() & found.keys())) > paired:
                image_of, mask_of, paired = by_stem, found, count
    if not paired:
        raise CocosegError(
            f"no mask has the name of an image: {image_dir / images[0]}, … against {mask_dir / masks[0]}, …; "
            "names must be the same below both folders, but for the ending and for data.image_suffix and "
            "data.mask_suffix, as in data.mask_suffix=_mask"
        )
    _require_partners(image_dir, image_of, mask_dir, mask_of)
    return sorted(MaskPair(names[0], mask_of[stem][0]) for stem, names in image_of.items())


def first(names: Sequence[str]) -> str:
    """List the first names, for a message."""
    return ", ".join(sorted(names)[:FIRST]) + ", …" * (len(names) > FIRST)


def _list(folder: Path, other: Path, ends: set[str], key: str) -> list[str]:
    """List the names of the files below a folder, without those of another folder within it."""
    found, other = [], other.resolve()
    is_within = other != folder.resolve() and other.is_relative_to(folder.resolve())
    for path in files_below(folder, key):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in ends or path.name.startswith("."):
            continue
        if is_within and path.resolve().is_relative_to(other):
            continue
        if printable(name) != name or "\\" in name or ":" in name:
            raise CocosegError(f"{path}: rename it; not all systems allow such a name")
        found.append(name)
    return sorted(found)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _by_stem(names: Sequence[str], suffix: str) -> dict[str, list[str]]:
    """Group names by the part that image and mask have in common."""
    found = defaultdict(list)
    for name in names:
        found[_stem(name).removesuffix(suffix)].append(name)
    return found


def _require_partners(
    image_dir: Path, image_of: Mapping[str, list[str]], mask_dir: Path, mask_of: Mapping[str, list[str]]
) -> None:
    """Raise CocosegError where images or masks have no partner, or several; it lists all these faults."""
    problems = []
    sides = (image_dir, image_of, "images", mask_of), (mask_dir, mask_of, "masks", image_of)
    for (folder, own, noun, others), partner in zip(sides, ("mask", "image"), strict=True):
        alone = [names[0] for stem, names in own.items() if stem not in others]
        several = [" and ".join(names) for names in own.values() if len(names) > 1]
        for found, fault in ((alone, f"have no {partner}"), (several, "have the name of others")):
            if found:
                problems.append(f"{len(found)} of {len(own)} {noun} in {folder} {fault} ({first(found)})")
    if problems:
        raise CocosegError(f"{'; '.join(problems)}; take them out of the folders, or add what is missing")
