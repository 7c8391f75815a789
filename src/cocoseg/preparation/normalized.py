"""Files whose coordinates are shares of the image's width and height, as YOLO and Azure have them."""

from cocoseg.errors import CocosegError
from cocoseg.preparation.coco_file import CocoFile
from cocoseg.preparation.segmentations import Instance, SegmentationError, is_normalized, parse_segmentation


def refuse_normalized(coco: CocoFile) -> None:
    """Refuse a file of polygons that all look like shares; those of one annotation are a warning.

    Of a usual file only the first polygons are read.

    Raises:
        CocosegError: says what to do.
    """
    sizes = {image.id: (image.height, image.width) for image in coco.images}
    found = False
    for annotation in coco.annotations:
        segmentation = bytes(annotation.segmentation)
        if segmentation.startswith(b"{"):  # runs have no coordinates
            continue
        size = sizes[annotation.image_id]
        try:
            outline = parse_segmentation(Instance(annotation.id, 0, False, segmentation), *size).outline
        except SegmentationError:
            return  # which those who draw it tell
        if outline and not is_normalized(outline, *size):
            return
        found = found or bool(outline)
    if found:
        raise CocosegError(
            f"{coco.path}: all coordinates lie between 0 and 1, as shares of the image; they must be pixels: "
            "multiply x by the image's width and y by its height, or export them so"
        )
