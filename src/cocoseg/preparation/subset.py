"""The choice of images: seeded, and nested, so that a larger one contains a smaller one."""

import heapq
from collections.abc import Mapping
from hashlib import blake2b

from cocoseg.errors import CocosegError
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.segmentations import Instance, SegmentationError, parse_segmentation


def choose(
    coco: CocoFile,
    *,
    size: int | None,
    seed: int,
    class_of: Mapping[int, int],
    keep_empty: bool = False,
    min_pixels: int = 0,
    stratify: bool = False,
) -> list[Image]:
    """Choose images, in the order of the file.

    Every image has a rank that depends on the seed and its own id alone, and the `size` lowest ranks are
    taken: the choice is nested (2,000 of a seed are contained in 4,000 of the same seed) and does not
    depend on the order of the file.

    Args:
        coco: the annotation file.
        size: how many; all that qualify if there are fewer, or if None.
        seed: of the ranks.
        class_of: category id -> class index; an image qualifies by an annotation of one of these categories.
        keep_empty: images without such an annotation qualify too.
        min_pixels: an image that is not empty qualifies if these annotations, crowds apart, cover that many
            pixels together; by the `area` of the file, or by what is drawn where it has none.
        stratify: take, again and again, the image of lowest rank for the class that the fewest images chosen
            so far show, the rarest first; nested all the same.

    Raises:
        CocosegError: `size` is below 1, or no image qualifies.
    """
    if size is not None and size < 1:
        raise CocosegError(f"data.subset.size is {size}; it must be at least 1, or null for all images")
    classes = _classes_of_images(coco, class_of)
    candidates = [image for image in coco.images if keep_empty or classes[image.id]]
    if min_pixels > 0:
        area = _areas(coco, class_of)
        candidates = [i for i in candidates if area[i.id] >= min_pixels or not classes[i.id]]
    if not candidates:
        less = f" of at least {min_pixels} pixels (data.subset.min_pixels)" if min_pixels > 0 else ""
        raise CocosegError(
            f"{coco.path}: no image has annotations of the chosen categories{less} "
            "(data.subset.keep_empty=true takes images without)"
        )
    if size is None or size >= len(candidates):
        return list(candidates)
    ranked = sorted((image.id for image in candidates), key=lambda image_id: (rank(seed, image_id), image_id))
    chosen = set(_rare_first(ranked, classes, size) if stratify else ranked[:size])
    return [image for image in candidates if image.id in chosen]


def rank(seed: int, image_id: int) -> bytes:
    """Sort key of an image; images are taken in ascending order."""
    return blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()


def _classes_of_images(coco: CocoFile, class_of: Mapping[int, int]) -> dict[int, set[int]]:
    """Image id -> classes on it."""
    classes: dict[int, set[int]] = {image.id: set() for image in coco.images}
    for annotation in coco.annotations:
        if annotation.category_id in class_of:
            classes[annotation.image_id].add(class_of[annotation.category_id])
    return classes


def _rare_first(ranked: list[int], classes: Mapping[int, set[int]], size: int) -> list[int]:
    """`size` image ids; images without any class count as a class of their own."""
    waiting: dict[int, list[int]] = {}  # class -> its images, the lowest rank last
    for image_id in reversed(ranked):
        for index in classes[image_id] or {0}:
            waiting.setdefault(index, []).append(image_id)
    shown = dict.fromkeys(waiting, 0)
    rarity = {index: len(images) for index, images in waiting.items()}
    queue = [(0, rarity[index], index) for index in waiting]
    heapq.heapify(queue)
    chosen: dict[int, None] = {}
    while len(chosen) < size:
        count, _, index = heapq.heappop(queue)
        images = waiting[index]
        while images and images[-1] in chosen:
            images.pop()
        if not images:
            continue
        if count == shown[index]:  # otherwise the class has been shown since, and goes back into the queue
            chosen[image_id := images.pop()] = None
            for other in classes[image_id] or {0}:
                shown[other] += 1
        heapq.heappush(queue, (shown[index], rarity[index], index))
    return list(chosen)


def _areas(coco: CocoFile, class_of: Mapping[int, int]) -> dict[int, float]:
    """Image id -> pixels that its annotations cover, overlaps counted twice."""
    sizes = {image.id: (image.height, image.width) for image in coco.images}
    areas = dict.fromkeys(sizes, 0.0)
    for annotation in coco.annotations:
        if annotation.category_id not in class_of or annotation.iscrowd:
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
