"""Choice of images: seeded and nested, so that a larger choice contains the smaller ones of its seed."""

from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import TypeVar

from cocoseg.errors import CocosegError
from cocoseg.labels import IGNORE_INDEX
from cocoseg.mask_images.convert import MaskItem, MaskSet
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.prepared_folder import PreparedSet
from cocoseg.preparation.segmentations import SegmentationError

Key = TypeVar("Key", int, str)


def choose(
    coco: CocoFile,
    *,
    size: int | None,
    seed: int,
    category_ids: Collection[int],
    keep_empty: bool = False,
    min_pixels: int = 0,
) -> list[Image]:
    """Choose images, in the order of the file.

    Every image has a rank that depends on the seed and its id alone, and those of the `size` lowest ranks are
    taken. So 4,000 images contain the 2,000 of the same seed, in whatever order the file lists them.

    Args:
        size: number of images; None, or more than qualify, for all that qualify.
        category_ids: an image qualifies by an annotation of one of these categories.
        keep_empty: images without such an annotation qualify too.
        min_pixels: least sum of the areas of these annotations, crowds apart, on an image that is not empty.
            An area is the `area` of the file, or that of the segmentation where the file has none.

    Raises:
        CocosegError: no image qualifies.
    """
    annotated = {a.image_id for a in coco.annotations if a.category_id in category_ids}
    candidates = [image for image in coco.images if keep_empty or image.id in annotated]
    if min_pixels > 0:
        area = _areas(coco, category_ids)
        candidates = [i for i in candidates if area[i.id] >= min_pixels or i.id not in annotated]
    if not candidates:
        less = f" of at least {min_pixels} pixels (data.subset.min_pixels)" if min_pixels > 0 else ""
        raise CocosegError(
            f"{coco.path}: no image has annotations of the chosen categories{less} "
            "(data.subset.keep_empty=true takes images without any)"
        )
    chosen = _lowest_ranks((image.id for image in candidates), seed, size)
    return [image for image in candidates if image.id in chosen]


def choose_masks(masks: MaskSet, prepared: PreparedSet) -> list[MaskItem]:
    """Choose mask images as `choose` does; the rank depends on the name of the image in place of an id.

    Raises:
        CocosegError: no image qualifies.
    """
    subset, candidates = prepared.data.subset, []
    for item in masks.items:
        pixels = sum(count for index, count in masks.pixels(item).items() if index not in (0, IGNORE_INDEX))
        if pixels >= max(1, subset.min_pixels) or (pixels == 0 and prepared.keep_empty):
            candidates.append(item)
    if not candidates:
        raise CocosegError(
            f"{prepared.origin}: no mask shows the chosen classes (data.subset.categories, .min_pixels)"
        )
    chosen = _lowest_ranks((item.pair.image for item in candidates), subset.seed, prepared.size)
    return [item for item in candidates if item.pair.image in chosen]


def _lowest_ranks(keys: Iterable[Key], seed: int, size: int | None) -> set[Key]:
    return set(sorted(keys, key=lambda key: (rank(seed, key), key))[:size])


def rank(seed: int, image_id: int | str) -> bytes:
    """The sort key of an image; images are taken in ascending order."""
    return blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()


def _areas(coco: CocoFile, category_ids: Collection[int]) -> dict[int, float]:
    """Image id -> sum of the areas of its annotations, in pixels, crowds left out."""
    sizes = {image.id: (image.height, image.width) for image in coco.images}
    areas = dict.fromkeys(sizes, 0.0)
    for annotation in coco.annotations:
        if annotation.category_id not in category_ids or annotation.iscrowd:
            continue
        area = annotation.area
        if area is None:
            try:
                area = annotation.parse(*sizes[annotation.image_id]).area
            except SegmentationError as error:
                raise CocosegError(f"{coco.path}: {error}") from error
        areas[annotation.image_id] += area
    return areas
