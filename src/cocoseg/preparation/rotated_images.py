"""Images with an EXIF rotation: their annotations by each reading, and the evidence for it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cocoseg.config import MasksConfig
from cocoseg.errors import CocosegError
from cocoseg.images.edges import edge_score
from cocoseg.images.exif import Reading, turn, upright_size
from cocoseg.images.image_files import Inspection, read_image
from cocoseg.preparation.paint_mask import paint
from cocoseg.preparation.segmentations import Instance, Layers, SegmentationError, parse_layers


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


def compare_edges(
    path: Path, instances: Sequence[Instance], found: Inspection, rules: MasksConfig, *, stretched: bool
) -> dict[Reading, float]:
    """Compare the edges in an image with its outlines, by each reading that is possible; see `edge_score`.

    Args:
        stretched: outlines may be scaled from the stored width and height.

    Raises:
        CocosegError: the image can't be read.
    """
    upright = read_image(path, upright=True, bits=found.bits).convert("L")
    stored = turn(upright, found.orientation, back=True)
    edges = {}
    for reading in Reading if stretched else (Reading.STORED, Reading.UPRIGHT):
        with suppress(SegmentationError):  # an RLE of the other size
            mask = paint(layers_as_read(instances, found, reading, rules), rules)
            score = edge_score(stored if reading is Reading.STORED else upright, mask)
            if score is not None:
                edges[reading] = score
    return edges


def require_stored_size(path: Path, listed: tuple[int, int], found: Inspection) -> None:
    """Raises CocosegError where the annotation file says that an image is turned, which is not wanted."""
    if listed != found.size:
        raise CocosegError(
            f"{path}: the annotation file says {listed[0]}x{listed[1]}, which is its size turned by its EXIF "
            "rotation; set data.exif=auto or apply"
        )
