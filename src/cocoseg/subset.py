"""Which images: a seeded choice that grows without changing."""

from collections.abc import Collection
from hashlib import blake2b

from cocoseg.coco import CocoFile, Image
from cocoseg.errors import CocosegError


def choose(
    coco: CocoFile, *, size: int | None, seed: int, category_ids: Collection[int], keep_empty: bool = False
) -> list[Image]:
    """Choose images, in the order of the file.

    Every image has a rank that depends on the seed and its own id alone, and the `size` lowest ranks are
    taken: the choice is nested (2,000 of a seed are contained in 4,000 of the same seed) and does not
    depend on the order of the file.

    Args:
        coco: the annotation file.
        size: how many; all that qualify if there are fewer, or if None.
        seed: of the ranks.
        category_ids: an image qualifies by an annotation of one of these categories.
        keep_empty: images without such an annotation qualify too.

    Raises:
        CocosegError: `size` is below 1, or no image qualifies.
    """
    if size is not None and size < 1:
        raise CocosegError(f"data.subset.size is {size}; it must be at least 1, or null for all images")
    candidates = coco.images
    if not keep_empty:
        annotated = {a.image_id for a in coco.annotations if a.category_id in category_ids}
        candidates = [image for image in candidates if image.id in annotated]
    if not candidates:
        raise CocosegError(
            f"{coco.path}: no image has an annotation of the chosen categories "
            "(data.subset.keep_empty=true takes images without)"
        )
    if size is None or size >= len(candidates):
        return list(candidates)
    ranked = sorted(candidates, key=lambda image: (_rank(seed, image.id), image.id))
    chosen = {image.id for image in ranked[:size]}
    return [image for image in candidates if image.id in chosen]


def _rank(seed: int, image_id: int) -> bytes:
    return blake2b(f"{seed}:{image_id}".encode(), digest_size=8).digest()
