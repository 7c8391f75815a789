"""Which training images come, in which order, how often."""

import numpy as np
import pytest
import torch

from cocoseg.sampling import Balanced, Shuffle, repeat_factors

# Five images; class 1 is on four of them, class 2 on one, class 3 on none; the last one shows nothing.
COUNTS = np.array([[9, 1, 0, 0], [9, 1, 0, 0], [0, 9, 0, 0], [5, 1, 4, 0], [9, 0, 0, 0]], dtype=np.int32)


def test_shuffled_images_come_once_each_in_an_order_of_the_seed():
    first, again, other = Shuffle(50, seed=1), Shuffle(50, seed=1), Shuffle(50, seed=2)
    epochs = [list(first) for _ in range(2)]
    assert [list(again) for _ in range(2)] == epochs
    assert epochs[0] != epochs[1] != list(other)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))


def test_factors_are_those_of_the_rarest_class():
    # On 0.8 and 0.2 of the images, 0.5 in the mean.
    rare = (0.5 / 0.2) ** 0.5
    assert repeat_factors(COUNTS) == pytest.approx([1, 1, 1, rare, 1])


@pytest.mark.parametrize("counts", [COUNTS[:3], COUNTS[4:], np.zeros((2, 3), np.int32), COUNTS[:, :1]])
def test_factors_where_no_class_is_rarer_than_others(counts):
    assert repeat_factors(counts).tolist() == [1.0] * len(counts)


def test_how_often_pixels_show_a_class_does_not_count():
    assert repeat_factors(COUNTS).tolist() == repeat_factors(COUNTS * [[7, 1, 100, 3]]).tolist()


def times(sampler: Balanced, epochs: int) -> np.ndarray:
    """How often each image came, in each epoch: (epochs, N)."""
    return np.stack([np.bincount(list(sampler), minlength=len(sampler)) for _ in range(epochs)])


def test_an_epoch_is_as_long_as_ever_and_factors_are_met():
    factors = np.array([1.0] * 20 + [2.5] * 6 + [9.0])
    sampler = Balanced(factors, seed=0)
    came = times(sampler, epochs=400)

    assert (came.sum(1) == len(sampler)).all()
    assert len(sampler) == 27
    expected = 27 * factors / factors.sum()
    assert (came >= np.floor(expected)).all()
    assert (came <= np.ceil(expected)).all()
    assert came.mean(0) == pytest.approx(expected, abs=0.08)
    assert sampler.expected.numpy() == pytest.approx(expected)


def test_images_are_rounded_up_independently_of_their_neighbours():
    came = times(Balanced(np.array([1.0, 1.0, 2.0, 2.0]), seed=3), epochs=400)
    # Each of the first two comes in two of three epochs; both in about one of three, not never or always.
    assert 0.2 < (came[:, :2].sum(1) == 2).mean() < 0.5


def test_equal_factors_are_a_shuffle():
    sampler = Balanced(np.full(30, 1.7), seed=0)
    epochs = [list(sampler) for _ in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_seed_decides():
    def epochs(seed: int) -> list[list[int]]:
        sampler = Balanced(np.linspace(1, 4, 40), seed)
        torch.rand(7)  # what else is drawn in the program changes nothing
        return [list(sampler) for _ in range(2)]

    assert epochs(5) == epochs(5)
    assert epochs(5) != epochs(6)
    assert epochs(5)[0] != epochs(5)[1]


def test_repeats_are_spread_over_the_epoch():
    order = list(Balanced(np.array([1.0] * 50 + [50.0]), seed=0))
    places = [place for place, number in enumerate(order) if number == 50]
    assert len(places) in (25, 26)
    assert max(places) - min(places) > 30


def test_one_image():
    assert list(Balanced(np.ones(1), seed=0)) == [0]
