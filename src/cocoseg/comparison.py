"""Pictures of what a network says of an image: image | truth | prediction | where it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import PIL.Image
import PIL.ImageDraw

from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.resizing import resize_mask
from cocoseg.scores import image_iou
from cocoseg.text import GREY, LINE, cut_text, draw_names, hatch, names_by_size, text_font

LEAST, MOST = 160, 256  # pixels: longer side of a panel; smaller images are enlarged, larger ones shrunk
GAP = 4  # pixels between panels and between strips


@dataclass(frozen=True)
class Example:
    """A validation image, and what the network says of it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        truth, prediction: (H, W) uint8 class indices, 255 in the truth where ignored.
    """

    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """(H, W) bool; ignored pixels are never wrong."""
        return (self.truth != self.prediction) & (self.truth != IGNORE_INDEX)

    @property
    def iou(self) -> float:
        """Mean over the classes in its own truth, with background."""
        return image_iou(self.truth, self.prediction)


def strip(example: Example, labels: LabelMap) -> PIL.Image.Image:
    """Four panels side by side, what they are and the classes in them below.

    Truth and prediction are in the colours of the labels; what is wrong is red on a dim grey image. Ignored
    pixels are striped, but in the prediction, which shows all that was said.
    """
    size = panel_size(*example.truth.shape)
    resized = PIL.Image.fromarray(example.image).resize(size, PIL.Image.Resampling.LANCZOS)
    photo = np.asarray(resized)
    grey = np.asarray(resized.convert("L"))[..., None] // 2
    red = np.concatenate((grey + 128, grey // 3, grey // 3), axis=2)
    truth, prediction, wrong = (
        resize_mask(mask, size[::-1])
        for mask in (example.truth, example.prediction, example.wrong.astype(np.uint8))
    )
    ignored = truth == IGNORE_INDEX
    palette = labels.palette()
    mistakes = np.where((wrong > 0)[..., None], red, grey)
    panels = {
        f"image, IoU {example.iou:.2f}": photo,
        "truth": hatch(palette[truth], ignored),
        "prediction": palette[prediction],
        f"wrong: {_share_wrong(example):.1%}": hatch(mistakes, ignored),
    }
    width, height = size
    picture = PIL.Image.new("RGB", (4 * (width + GAP) - GAP, height + 2 * LINE), "white")
    draw, font = PIL.ImageDraw.Draw(picture), text_font()
    for number, (title, panel) in enumerate(panels.items()):
        x = number * (width + GAP)
        picture.paste(PIL.Image.fromarray(panel), (x, 0))
        draw.text((x, height + 1), cut_text(title, font, width), fill=GREY, font=font)
    names = names_by_size(labels, example.truth, example.prediction, background=True)
    draw_names(draw, 0, height + LINE, picture.width, names, font, lines=1)
    return picture


def sheet(examples: Sequence[Example], labels: LabelMap) -> PIL.Image.Image:
    """A strip per example, the hardest first."""
    strips = [strip(example, labels) for example in sorted(examples, key=lambda e: e.iou)]
    height = sum(picture.height + GAP for picture in strips) - GAP
    result = PIL.Image.new("RGB", (max(picture.width for picture in strips), height), "white")
    y = 0
    for picture in strips:
        result.paste(picture, (0, y))
        y += picture.height + GAP
    return result


def spread(images: int, count: int, seed: int) -> list[int]:
    """Numbers below `images` in ascending order, one drawn at random from each of `count` equal parts."""
    count = min(count, images)
    bounds = [part * images // count for part in range(count + 1)] if count else []
    draw = np.random.default_rng(seed)
    return [int(draw.integers(low, high)) for low, high in pairwise(bounds)]


def easy_and_hard(truths: dict[int, np.ndarray], count: int) -> list[int]:
    """Keys of some masks, (H, W) uint8 class indices, from the hardest of all to the easiest.

    Hard is what has many borders between classes: there, and in small objects, predictions go wrong. That
    does not depend on a network, so that all runs on the same data show the same images.
    """
    order = sorted(truths, key=lambda key: -_borders(truths[key]))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


def _borders(mask: np.ndarray) -> int:
    """Pairs of neighbours that are of different classes."""
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    return np.count_nonzero(across) + np.count_nonzero(down)


def panel_size(height: int, width: int) -> tuple[int, int]:
    """Width and height that an image is shown in: shrunk where it is large, a multiple where it is small."""
    longer = max(height, width)
    scale = MOST / longer if longer > MOST else -(-LEAST // longer)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _share_wrong(example: Example) -> float:
    counted = np.count_nonzero(example.truth != IGNORE_INDEX)
    return np.count_nonzero(example.wrong) / max(1, counted)
