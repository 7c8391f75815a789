from itertools import pairwise

import pytest

from cocoseg.inference.tiling import OVERLAP, STEP, spans


@pytest.mark.parametrize("length", [1, 64, 65, 96, 97, 128, 200, 1000, 1001])
@pytest.mark.parametrize("tile", [64, 100, 768])
def test_spans_cover_the_length_and_overlap(length, tile):
    found = spans(length, tile)
    assert found[0].start == 0
    assert found[-1].stop == length
    for span, after in pairwise(found):
        assert span.start % STEP == after.start % STEP == 0
        assert span.start < after.start
        assert span.stop < after.stop
        assert span.stop - after.start >= min(OVERLAP, tile // 4)
    assert all(span.stop - span.start <= tile + STEP - 1 for span in found)


def test_one_tile_decides_each_pixel_far_from_its_ends():
    found = spans(1000, 256)
    assert len(found) > 2
    assert (found[0].first, found[-1].last) == (0, 1000)
    for span, after in pairwise(found):
        assert span.last == after.first
        assert span.stop - span.last >= 32
        assert after.first - after.start >= 32
