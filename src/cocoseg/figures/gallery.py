"""`gallery.html`: images, predictions and overlays to look through, in one page that needs no network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
import PIL.Image

from cocoseg.figures.overlay import overlay
from cocoseg.figures.text import readable_color
from cocoseg.files import RUN_LENGTHS, save_png, write_bytes
from cocoseg.labels import LabelMap
from cocoseg.resizing import resize_mask

FOLDER = "gallery"  # folder of the thumbnails, next to the page
LONGEST = 480  # pixels: longer side of a thumbnail at most
LEAST = 240  # pixels: smaller thumbnails are shown enlarged to this

# The page is gallery.html next to this file. Whatever is filled in has been escaped.
_CARD = Template("""<article>
<h2>$score$title</h2><p>$about</p>
<div class="row"><figure><div class="pair">
<img src="$path.image.jpg" alt="Image of $title" $size loading="lazy">
<img src="$path.overlay.jpg" alt="Overlay of $title" $size loading="lazy" class="over"></div>
<input type="range" min="0" max="100" value="50" aria-label="Overlay of $title">
<figcaption>image | overlay</figcaption></figure>
<figure><img src="$path.mask.png" alt="Prediction of $title" $size loading="lazy">
<figcaption>prediction</figcaption></figure>$target</div>
<p>$legend</p>
</article>""")
_TARGET = Template("""
<figure><img src="$path.target.png" alt="Target of $title" $size loading="lazy">
<figcaption>target</figcaption></figure>""")


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        title: name of the image.
        name: path of its thumbnails without ending, below FOLDER.
        size: height and width in pixels.
        pixels: number of pixels by class index.
        caption: a line of text, such as the score of each class.
        score: sorts the cards, the lowest first; None keeps their order.
        has_target: whether a thumbnail of the target mask was written too.
    """

    title: str
    name: str
    size: tuple[int, int]
    pixels: Mapping[int, int] = field(default_factory=dict)
    caption: str = ""
    score: float | None = None
    has_target: bool = False


def write_thumbnails(
    folder: Path,
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    labels: LabelMap,
    target: np.ndarray | None = None,
) -> None:
    """Write the thumbnails of a card.

    Args:
        folder: folder of the page.
        name: of the card, unique in the page.
        image: (H, W, 3) uint8 RGB, of any size.
        mask: (h, w) uint8 class indices, of any size, stretched to that of the thumbnail.
        target: target mask like `mask`, 255 where ignored.
    """
    size = _scale(image.shape[:2], min(LONGEST, max(image.shape[:2])))
    resized = PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BOX)
    over = overlay(np.asarray(resized), resize_mask(mask, size), labels)
    for kind, thumbnail in (("image.jpg", resized), ("overlay.jpg", PIL.Image.fromarray(over))):
        buffer = BytesIO()
        thumbnail.save(buffer, format="JPEG", quality=85)
        write_bytes(_thumbnail(folder, name, kind), buffer.getvalue())
    for kind, classes in (("mask.png", mask), ("target.png", target)):
        if classes is not None:
            thumbnail = PIL.Image.fromarray(resize_mask(classes, size))
            thumbnail.putpalette(labels.palette().tobytes())
            save_png(_thumbnail(folder, name, kind), thumbnail, **RUN_LENGTHS)


def has_thumbnails(folder: Path, name: str) -> bool:
    """Tell whether the thumbnails of a name are there, that of a target aside."""
    kinds = ("image.jpg", "overlay.jpg", "mask.png")
    return all(_thumbnail(folder, name, kind).is_file() for kind in kinds)


def write_gallery(path: Path, cards: Sequence[Card], labels: LabelMap, title: str, about: str = "") -> None:
    """Write the page, whose thumbnails must be there; `about` is a line below its heading, `title`."""
    template = Template(files(__package__).joinpath("gallery.html").read_text(encoding="utf-8"))
    ranked = sorted(cards, key=lambda card: math.inf if card.score is None else card.score)
    page = template.substitute(
        title=escape(title),
        about=escape(about),
        colors="".join(
            f".c{index}{{background:rgb{label.color};color:{readable_color(label.color)}}}"
            for index, label in enumerate(labels.classes)
        ),
        legend="".join(_chip(index, name) for index, name in enumerate(labels.names)),
        cards="\n".join(_card(card, labels) for card in ranked),
    )
    write_bytes(path, page.encode())


def _card(card: Card, labels: LabelMap) -> str:
    height, width = _scale(card.size, max(LEAST, min(LONGEST, max(card.size))))
    total = sum(card.pixels.values())
    shown = [(index, count) for index, count in card.pixels.items() if count and index < len(labels)]
    shown.sort(key=lambda item: -item[1])
    image = {
        "title": escape(card.title),
        "path": escape(quote(f"{FOLDER}/{card.name}")),
        "size": f'width="{width}" height="{height}"',
    }
    size = f"{card.size[1]} x {card.size[0]}"
    return _CARD.substitute(
        image,
        score="" if card.score is None else f"<b>{card.score:.3f}</b> ",
        about=escape(" · ".join(part for part in (size, card.caption) if part)),
        target=_TARGET.substitute(image) if card.has_target else "",
        legend="".join(_chip(index, labels.names[index], count / total) for index, count in shown),
    )


def _chip(index: int, name: str, share: float | None = None) -> str:
    text = escape(name) + ("" if share is None else f" {100 * share:.1f} %")
    return f'<span class="chip c{index}">{text}</span>'


def _scale(size: tuple[int, ...], longer: int) -> tuple[int, int]:
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _thumbnail(folder: Path, name: str, kind: str) -> Path:
    return folder / FOLDER / f"{name}.{kind}"
