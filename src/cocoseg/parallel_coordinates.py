"""Parallel coordinates: an axis per setting, a line per run, drawn with Pillow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

SCALE = 2  # drawn larger and shrunk, for smooth lines
STEP, HEIGHT = 190, 420  # pixels from axis to axis; of the picture
LEFT, TOP, BOTTOM = 90, 60, 34  # pixels around the axes
LOGARITHMIC = 20  # largest over smallest value, from which an axis is logarithmic
FEW = 8  # values that are all written beside an axis
TITLE = 26  # characters
COLORS = (
    (68, 1, 84),
    (59, 82, 139),
    (33, 145, 140),
    (94, 201, 98),
    (253, 180, 37),
)  # viridis, the end darker
AXIS, WITHOUT = (70, 70, 70), (200, 200, 200)


@dataclass(frozen=True)
class Axis:
    """Where values lie on an axis: 0 at the bottom, 1 at the top.

    Attributes:
        title: what is written over it.
        places: of the values.
        marks: what is written beside it, and where.
    """

    title: str
    places: dict[str | None, float]
    marks: list[tuple[float, str]]


def parallel_coordinates(
    names: Sequence[str], runs: Sequence[tuple[Sequence[str | None], float | None]]
) -> PIL.Image.Image | None:
    """A line per run through its values, coloured by its score; grey where it has none.

    Args:
        names: of the settings.
        runs: the values of each run as they were typed, and its score.

    Returns:
        None where there is nothing to draw: no settings that differ, or no scores.
    """
    scores = [score for _, score in runs if score is not None]
    if not names or not scores:
        return None
    columns = list(zip(*(values for values, _ in runs), strict=True))
    axes = [make_axis(name, column) for name, column in zip(names, columns, strict=True)]
    low, high = min(scores), max(scores)
    axes.append(Axis("val mIoU", {}, [(share, f"{low + share * (high - low):.3f}") for share in (0, 0.5, 1)]))
    width = LEFT + STEP * (len(axes) - 1) + LEFT
    picture = PIL.Image.new("RGB", (SCALE * width, SCALE * HEIGHT), "white")
    draw = PIL.ImageDraw.Draw(picture)
    # The best ones last, on top of the others.
    for values, score in sorted(runs, key=lambda run: -1.0 if run[1] is None else run[1]):
        points = [_point(number, axes[number].places[value]) for number, value in enumerate(values)]
        share = 0.0
        if score is not None:
            share = (score - low) / (high - low) if high > low else 1.0
            points.append(_point(len(values), share))
        color = WITHOUT if score is None else _color(share)
        draw.line(points, fill=color, width=SCALE * (3 if score == high else 2), joint="curve")
    for number, axis in enumerate(axes):
        _draw_axis(draw, number, axis)
    return picture.resize((width, HEIGHT), PIL.Image.Resampling.LANCZOS)


def make_axis(name: str, values: Sequence[str | None]) -> Axis:
    """An axis for values as they were typed: by size where all are numbers, else side by side."""
    title = name if len(name) <= TITLE else f"…{name[1 - TITLE :]}"
    numbers = {value: _number(value) for value in values}
    known = sorted({number for number in numbers.values() if number is not None})
    if len(known) < 2 or None in numbers.values():
        shown = sorted(set(values), key=lambda value: (numbers[value] is None, numbers[value], str(value)))
        places = {value: (i + 0.5) / len(shown) for i, value in enumerate(shown)}
        marks = [(place, _shortened(str(value))) for value, place in places.items()]
        return Axis(title, places, marks[:: -(-len(marks) // (2 * FEW))])
    low, high = known[0], known[-1]
    logarithmic = low > 0 and high / low >= LOGARITHMIC

    def place(number: float) -> float:
        if logarithmic:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    def at(share: float) -> float:
        return low * (high / low) ** share if logarithmic else low + share * (high - low)

    marks = [(place(number), f"{number:.4g}") for number in known]
    if len(known) > FEW:
        marks = [(share, f"{at(share):.2g}") for share in (0, 0.25, 0.5, 0.75, 1)]
    return Axis(title, {value: place(number) for value, number in numbers.items()}, marks)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shortened(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:15]}…"


def _point(axis: int, share: float) -> tuple[float, float]:
    x = LEFT + STEP * axis
    return SCALE * x, SCALE * (HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM))


def _draw_axis(draw: PIL.ImageDraw.ImageDraw, number: int, axis: Axis) -> None:
    font, small = (PIL.ImageFont.load_default(size=SCALE * size) for size in (13, 11))
    bottom, top = _point(number, 0), _point(number, 1)
    draw.line([bottom, top], fill=AXIS, width=SCALE)
    draw.text((top[0], top[1] - SCALE * 30), axis.title, fill="black", font=font, anchor="mm")
    for share, text in axis.marks:
        x, y = _point(number, share)
        draw.line([(x - SCALE * 4, y), (x, y)], fill=AXIS, width=SCALE)
        box = draw.textbbox((x - SCALE * 7, y), text, font=small, anchor="rm")
        draw.rectangle((box[0] - SCALE * 2, box[1] - SCALE, box[2] + SCALE, box[3] + SCALE), fill="white")
        draw.text((x - SCALE * 7, y), text, fill=AXIS, font=small, anchor="rm")


def _color(share: float) -> tuple[int, ...]:
    """0 … 1 to a colour between violet and yellow."""
    position = share * (len(COLORS) - 1)
    below = min(int(position), len(COLORS) - 2)
    part = position - below
    return tuple(round(a + part * (b - a)) for a, b in zip(COLORS[below], COLORS[below + 1], strict=True))
