"""Order of training images."""

from cocoseg.data.sampling import Shuffle


def test_shuffled_images_come_once_each_in_an_order_of_the_seed():
    first, again, other = Shuffle(50, seed=1), Shuffle(50, seed=1), Shuffle(50, seed=2)
    epochs = [list(first) for _ in range(2)]
    assert [list(again) for _ in range(2)] == epochs
    assert epochs[0] != epochs[1] != list(other)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))
