import numpy as np
import pytest

from cocoseg.figures.text import LINE, cut_text, hatch, legend, readable_color, text_font, text_width
from cocoseg.labels import LabelClass, LabelMap
from tiny import LABELS

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)
STREET = LabelMap(
    (
        LabelClass((), "background", (0, 0, 0)),
        LabelClass((1,), "zebra crossing", RED),
        LabelClass((2,), "car", BLUE),
        LabelClass((3,), "traffic light", GREEN),
    )
)


def test_stripes_are_only_where_they_should_be():
    picture = np.full((20, 20, 3), 200, dtype=np.uint8)
    where = np.zeros((20, 20), dtype=bool)
    where[5:, 5:] = True

    result = hatch(picture, where)

    assert (result[~where] == 200).all()
    assert {*result[where].ravel().tolist()} == {64, 196}
    assert (picture == 200).all()  # a copy


def test_a_legend_names_the_classes_of_all_masks_the_largest_first():
    first = np.array([[0, 0, 0, 0, 2, 255]], dtype=np.uint8)
    second = np.array([[0, 1, 1, 1, 2, 1]], dtype=np.uint8)
    pixels = np.asarray(legend(LABELS, first, second, width=300, lines=5))
    assert pixels.shape == (LINE, 300, 3)
    cat, dog = (np.flatnonzero((pixels == color).all(-1).any(0)) for color in (RED, BLUE))
    assert cat.max() < dog.min()
    assert not (np.asarray(legend(LABELS, first, width=300, lines=5)) == RED).all(-1).any()


@pytest.mark.parametrize(("width", "lines", "shown"), [(400, 1, 3), (110, 1, 1), (110, 2, 3), (110, 9, 3)])
def test_names_that_have_no_room_are_counted(width, lines, shown):
    mask = np.array([[1, 1, 1, 2, 2, 3]], dtype=np.uint8)
    pixels = np.asarray(legend(STREET, mask, width=width, lines=lines))
    assert pixels.shape[1] == width
    assert pixels.shape[0] == LINE * min(lines, 1 if width == 400 else 2)
    assert sum((pixels == color).all(-1).sum() > 50 for color in (RED, BLUE, GREEN)) == shown
    below = pixels[-LINE:].astype(int)
    gray = (np.ptp(below, axis=-1) == 0) & (below[..., 0] > 90) & (below[..., 0] < 200)
    on_white = gray & (np.roll(below, 6, axis=1) == 255).all(-1)
    assert on_white.any() == (shown < 3)  # the count


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
