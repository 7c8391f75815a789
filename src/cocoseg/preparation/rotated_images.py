"""Images with an EXIF rotation: their annotations by each reading, and the evidence for it."""

from collections.abc import Sequence
from pathlib import Path

from cocoseg.config import MasksConfig
from cocoseg.errors import CocosegError
from cocoseg.images.edges import edge_score
from cocoseg.images.exif import Reading, Rotation, find_rotation, turn, upright_size
from cocoseg.images.image_files import Inspection, read_image
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, Layers, SegmentationError, extent, parse_layers


def layers_as_read(
    instances: Sequence[Instance], found: Inspection, reading: Reading, rules: MasksConfig
) -> Layers:
    """Parse the annotations of an image, in pixels of the reading.

    Raises:
        SegmentationError: a segmentation is malformed, or an RLE has another size.
    """
    upright = upright_size(found.size, found.orientation)
    width, height = upright if reading is Reading.UPRIGHT else found.size
    layers = parse_layers(instances, height, width, rules.crowd)
    return layers.scale_to(*upright) if reading is Reading.STRETCHED else layers


def gather_evidence(
    path: Path, listed: tuple[int, int], instances: Sequence[Instance], found: Inspection, rules: MasksConfig
) -> Rotation:
    """Gather what tells about the reading of an image with an EXIF rotation.

    Args:
        listed: width and height in the annotation file.

    Raises:
        CocosegError: the image can't be read, or a segmentation is malformed.
    """
    rotation = find_rotation(found.size, found.orientation, listed, extent(instances))
    if rotation.by_size:
        return rotation
    upright = read_image(path, upright=True, bits=found.bits).convert("L")
    stored = turn(upright, found.orientation, back=True)
    edges = {}
    for reading in Reading:
        if reading is Reading.STRETCHED and rotation.by_size is None:
            continue  # width and height are the same
        try:
            mask = paint(layers_as_read(instances, found, reading, rules), rules)
        except SegmentationError:  # an RLE of the other size
            continue
        score = edge_score(stored if reading is Reading.STORED else upright, mask)
        if score is not None:
            edges[reading] = score
    return rotation._replace(edges=edges)


def require_stored_size(path: Path, listed: tuple[int, int], found: Inspection) -> None:
    """Raises CocosegError where the annotation file says that an image is turned, which is not wanted."""
    if listed != found.size:
        raise CocosegError(
            f"{path}: the annotation file says {listed[0]}x{listed[1]}, which is its size turned by its EXIF "
            "rotation; set data.exif=auto or apply"
        )
