import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from cocoseg.figures.text import (
    LINE,
    cut_text,
    draw_names,
    hatch,
    names_by_size,
    readable_color,
    text_font,
    text_width,
)
from tiny import LABELS

NAMES = [("zebra crossing", (255, 0, 0)), ("car", (0, 0, 255)), ("traffic light", (0, 128, 0))]


def test_stripes_are_only_where_they_should_be():
    picture = np.full((20, 20, 3), 200, dtype=np.uint8)
    where = np.zeros((20, 20), dtype=bool)
    where[5:, 5:] = True

    result = hatch(picture, where)

    assert (result[~where] == 200).all()
    assert {*result[where].ravel().tolist()} == {64, 196}
    assert (picture == 200).all()  # a copy


def test_names_by_size_of_several_masks():
    first = np.array([[0, 0, 0, 0, 2, 255]], dtype=np.uint8)
    second = np.array([[0, 1, 1, 1, 2, 1]], dtype=np.uint8)
    assert [name for name, _ in names_by_size(LABELS, first)] == ["dog"]
    assert names_by_size(LABELS, first, second, background=True) == [
        ("background", (0, 0, 0)),
        ("cat", (255, 0, 0)),
        ("dog", (0, 0, 255)),
    ]


@pytest.mark.parametrize(("width", "lines", "shown"), [(400, 1, 3), (95, 1, 1), (95, 2, 3)])
def test_names_that_do_not_fit_are_counted(width, lines, shown):
    picture = PIL.Image.new("RGB", (width + 50, lines * LINE), "white")

    draw_names(PIL.ImageDraw.Draw(picture), 0, 0, width, NAMES, text_font(), lines=lines)

    pixels = np.asarray(picture)
    found = sum((pixels == color).all(-1).sum() > 50 for _, color in NAMES)
    assert found == shown
    assert (pixels[:, width:] == 255).all()  # nothing beyond
    below = pixels[(lines - 1) * LINE :].astype(int)
    grey = (np.ptp(below, axis=-1) == 0) & (below[..., 0] > 90) & (below[..., 0] < 200)
    on_white = grey & (np.roll(below, 6, axis=1) == 255).all(-1)
    assert on_white.any() == (shown < len(NAMES))  # the count


def test_a_long_text_is_cut_at_its_end():
    font = text_font()
    assert cut_text("short\nname", font, 200) == "short name"
    cut = cut_text("a very long name of a class " * 9, font, 100)
    assert cut.startswith("a very long")
    assert cut.endswith("…")
    assert text_width(cut, font) <= 100


def test_text_is_readable_color_its_ground():
    assert readable_color((0, 0, 0)) == "white"
    assert readable_color((255, 255, 0)) == "black"
