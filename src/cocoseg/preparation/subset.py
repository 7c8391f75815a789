"""The choice of images: seeded, and nested, so that a larger one contains a smaller one."""

from collections.abc import Collection
from hashlib import blake2b

from cocoseg.errors import CocosegError
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.segmentations import Instance, SegmentationError, parse_segmentation


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

    Every image has a rank that depends on the seed and its own id alone, and the `size` lowest ranks are
    taken: the choice is nested (2,000 of a seed are contained in 4,000 of the same seed) and does not
    depend on the order of the file.

    Args:
        size: number of images; all that qualify if there are fewer, or if None.
        category_ids: an image qualifies by an annotation of one of these categories.
        keep_empty: images without such an annotation qualify too.
        min_pixels: an image that is not empty qualifies if these annotations, crowds apart, cover that many
            pixels together; by the `area` of the file, or by what is drawn where it has none.

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
            "(data.subset.keep_empty=true takes images without)"
        )
    ranked = sorted(candidates, key=lambda image: (rank(seed, image.id), image.id))
    chosen = {image.id for image in ranked[:size]}
    return [image for image in candidates if image.id in chosen]


def rank(seed: int, image_id: int) -> bytes:
    """Sort key of an image; images are taken in ascending order."""
    return blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()


def _areas(coco: CocoFile, category_ids: Collection[int]) -> dict[int, float]:
    """Image id -> pixels that its annotations cover, overlaps counted twice."""
    sizes = {image.id: (image.height, image.width) for image in coco.images}
    areas = dict.fromkeys(sizes, 0.0)
    for annotation in coco.annotations:
        if annotation.category_id not in category_ids or annotation.iscrowd:
            continue
        area = annotation.area
        if area is None:
            instance = Instance(annotation.id, 0, False, bytes(annotation.segmentation))
            try:
                area = parse_segmentation(instance, *sizes[annotation.image_id]).area
            except SegmentationError as error:
                raise CocosegError(f"{coco.path}: {error}") from error
        areas[annotation.image_id] += area
    return areas
