"""`gallery.html`: images, predictions and overlays to look through, in one page that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from urllib.parse import quote

import numpy as np
import PIL.Image

from cocoseg.files import RUN_LENGTHS, save_png, write_bytes
from cocoseg.labels import LabelMap
from cocoseg.overlay import overlay
from cocoseg.resizing import resize_mask
from cocoseg.text import readable_color

FOLDER = "gallery"  # of the small pictures, beside the page
LONGEST = 480  # pixels: their longer side
LEAST = 240  # pixels: smaller ones are shown this large
SHOWN = 8  # classes of an image's legend; the rest is counted


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        title: its name.
        name: that its small pictures were written under, see `write_pictures`.
        size: height and width, in pixels.
        pixels: how many pixels are of each class index.
        caption: a line of text, such as the score of each class.
        score: cards are sorted by it, the lowest first; None: they keep their order.
        has_truth: a picture of the truth was written, too.
    """

    title: str
    name: str
    size: tuple[int, int]
    pixels: Mapping[int, int] = field(default_factory=dict)
    caption: str = ""
    score: float | None = None
    has_truth: bool = False


def write_pictures(
    folder: Path,
    name: str,
    image: np.ndarray,
    mask: np.ndarray,
    labels: LabelMap,
    truth: np.ndarray | None = None,
) -> None:
    """Write the small pictures of a card.

    Args:
        folder: that the page will lie in.
        name: may hold folders; unique in the page.
        image: (H, W, 3) uint8 RGB, of any size.
        mask: (h, w) uint8 class indices, of any size.
        truth: as the mask, 255 where ignored.
    """
    height, width = _fitted(image.shape[:2])
    picture = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BOX)
    small = resize_mask(mask, (height, width))
    _write_jpeg(_place(folder, name, "image.jpg"), picture)
    over = PIL.Image.fromarray(overlay(np.asarray(picture), small, labels))
    _write_jpeg(_place(folder, name, "overlay.jpg"), over)
    _write_mask(_place(folder, name, "mask.png"), small, labels)
    if truth is not None:
        _write_mask(_place(folder, name, "truth.png"), resize_mask(truth, (height, width)), labels)


def has_pictures(folder: Path, name: str) -> bool:
    """Whether `write_pictures` wrote those of a name."""
    kinds = ("image.jpg", "overlay.jpg", "mask.png")
    return all(_place(folder, name, kind).is_file() for kind in kinds)


def write_gallery(path: Path, cards: Sequence[Card], labels: LabelMap, title: str, about: str = "") -> None:
    """Write the page; its pictures lie in FOLDER beside it already.

    Args:
        title: heading.
        about: a line below it.
    """
    if any(card.score is not None for card in cards):
        cards = sorted(cards, key=lambda card: (card.score is None, card.score))
    page = _PAGE.substitute(
        title=escape(title),
        about=escape(about),
        colors="".join(
            f".c{index}{{background:rgb{label.color};color:{readable_color(label.color)}}}"
            for index, label in enumerate(labels.classes)
        ),
        legend="".join(_chip(index, name) for index, name in enumerate(labels.names)),
        cards="\n".join(_card(card, labels) for card in cards),
    )
    write_bytes(path, page.encode())


def _card(card: Card, labels: LabelMap) -> str:
    height, width = card.size
    shown = _scaled(card.size, max(LEAST, min(LONGEST, max(card.size))))
    total = sum(card.pixels.values()) or 1
    ranked = sorted(card.pixels.items(), key=lambda item: -item[1])
    ranked = [(index, count) for index, count in ranked if count and index < len(labels)]
    chips = [_chip(index, labels.names[index], count / total) for index, count in ranked[:SHOWN]]
    more = f"<span>+{len(ranked) - SHOWN}</span>" if len(ranked) > SHOWN else ""
    title = escape(card.title)

    def figure(kind: str, alt: str) -> str:
        return f"<figure>{img(kind, alt)}<figcaption>{alt.lower()}</figcaption></figure>"

    def img(kind: str, alt: str, more: str = "") -> str:
        source = escape(quote(f"{FOLDER}/{card.name}.{kind}"))
        size = f'width="{shown[1]}" height="{shown[0]}"'
        return f'<img src="{source}" alt="{alt} of {title}" {size} loading="lazy"{more}>'

    return _CARD.substitute(
        title=title,
        score="" if card.score is None else f"<b>{card.score:.3f}</b> ",
        about=escape(" · ".join(part for part in (f"{width} x {height}", card.caption) if part)),
        image=img("image.jpg", "Image"),
        overlay=img("overlay.jpg", "Overlay", ' class="over"'),
        prediction=figure("mask.png", "Prediction"),
        truth=figure("truth.png", "Truth") if card.has_truth else "",
        legend="".join(chips) + more,
    )


def _chip(index: int, name: str, share: float | None = None) -> str:
    text = escape(name) + ("" if share is None else f" {100 * share:.1f} %")
    return f'<span class="chip c{index}">{text}</span>'


def _fitted(size: tuple[int, ...]) -> tuple[int, int]:
    """Height and width with a longer side of LONGEST at most."""
    return _scaled(size, min(LONGEST, max(size)))


def _scaled(size: tuple[int, ...], longer: int) -> tuple[int, int]:
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _place(folder: Path, name: str, kind: str) -> Path:
    return folder / FOLDER / f"{name}.{kind}"


def _write_mask(path: Path, mask: np.ndarray, labels: LabelMap) -> None:
    """Write class indices, (H, W) uint8, in the colours of the labels."""
    picture = PIL.Image.fromarray(mask)
    picture.putpalette(labels.palette().tobytes())
    save_png(path, picture, **RUN_LENGTHS)


def _write_jpeg(path: Path, picture: PIL.Image.Image) -> None:
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    write_bytes(path, buffer.getvalue())


_CARD = Template("""<article>
<h2>$score$title</h2><p>$about</p>
<div class="row"><figure><div class="pair">$image$overlay</div>
<input type="range" min="0" max="100" value="50" aria-label="Overlay of $title">
<figcaption>image | overlay</figcaption></figure>$prediction$truth</div>
<p>$legend</p>
</article>""")
_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 16px; }
header { position: sticky; top: 0; z-index: 1; background: Canvas; padding: 4px 0; }
h1 { font-size: 18px; margin: 0; }
h2 { font-size: 14px; margin: 0; overflow-wrap: anywhere; }
p { margin: 4px 0; }
main { display: flex; flex-wrap: wrap; gap: 16px; }
article { border: 1px solid #8886; border-radius: 6px; padding: 8px; max-width: 100%;
  content-visibility: auto; contain-intrinsic-size: auto 700px auto 460px; }
.row { display: flex; flex-wrap: wrap; gap: 8px; }
figure { margin: 0; max-width: 100%; }
figcaption { text-align: center; opacity: .7; }
img { display: block; max-width: 100%; height: auto; }
img[src$$=".png"] { image-rendering: pixelated; }
.pair { position: relative; --at: 50%; width: fit-content; }
.over { position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 0 0 var(--at)); }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: calc(var(--at) - 1px);
  width: 2px; background: #fff; mix-blend-mode: difference; }
input { width: 100%; margin: 4px 0; box-sizing: border-box; }
.legend { max-height: 4.8em; overflow: auto; }
.chip { display: inline-block; padding: 0 6px; margin: 0 4px 4px 0; border-radius: 3px; }
$colors
</style>
<header><h1>$title</h1><p>$about</p><p class="legend">$legend</p></header>
<main>
$cards
</main>
<script>
document.addEventListener("input", event => {
  event.target.parentElement.querySelector(".pair").style.setProperty("--at", event.target.value + "%");
});
</script>
</html>
""")
