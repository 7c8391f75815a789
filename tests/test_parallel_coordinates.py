"""Parallel coordinates."""

import numpy as np
import pytest

from cocoseg.parallel_coordinates import COLORS, WITHOUT, make_axis, parallel_coordinates


def test_numbers_lie_by_size():
    axis = make_axis("model.depth", ["2", "4", "3"])
    assert axis.places == {"2": 0, "4": 1, "3": 0.5}
    assert axis.marks == [(0, "2"), (0.5, "3"), (1, "4")]


def test_numbers_far_apart_lie_by_their_logarithm():
    axis = make_axis("optimizer.lr", ["1e-4", "0.001", "0.01"])
    assert axis.places == pytest.approx({"1e-4": 0, "0.001": 0.5, "0.01": 1})


def test_words_lie_side_by_side():
    axis = make_axis("loss", ["cross_entropy", "ce_dice", "cross_entropy", None])
    assert axis.places == {"None": 0} | axis.places or len(axis.places) == 3
    assert sorted(axis.places.values()) == pytest.approx([1 / 6, 3 / 6, 5 / 6])


def test_many_numbers_have_few_marks():
    axis = make_axis("lr", [str(number) for number in range(1, 40)])
    assert len(axis.marks) == 5
    assert axis.marks[0] == (0, "1")
    assert axis.marks[-1] == (1, "39")


def test_long_names_keep_their_end():
    assert make_axis("trainer.accumulate_grad_batches_and_more", ["1", "2"]).title.endswith(
        "batches_and_more"
    )


def test_the_best_run_is_drawn_in_the_last_colour():
    runs = [(["1", "a"], 0.25), (["2", "b"], 0.75), (["3", "c"], None)]
    picture = np.asarray(parallel_coordinates(["model.depth", "loss"], runs)).reshape(-1, 3).astype(int)
    for color in (COLORS[0], COLORS[-1], WITHOUT):
        assert (abs(picture - color).max(axis=1) < 10).any(), color


@pytest.mark.parametrize(("names", "runs"), [([], [([], 0.5)]), (["seed"], [(["1"], None), (["2"], None)])])
def test_nothing_to_draw(names, runs):
    assert parallel_coordinates(names, runs) is None


def test_equal_scores():
    assert parallel_coordinates(["seed"], [(["1"], 0.5), (["2"], 0.5)]) is not None
