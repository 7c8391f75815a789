"""Order of training images, and the images of each process."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.sampling import Shuffle, in_batches, split_indices
from cocoseg.errors import CocosegError
from tiny import shapes_config


def test_a_seed_holds_out_the_same_images_in_every_version():
    """Otherwise evaluate.py would score a model of an earlier version on its training images."""
    assert split_indices(10, 0.3, seed=0) == ([4, 1, 7, 5, 3, 9, 0], [8, 6, 2])


def test_an_epoch_has_each_image_once_in_an_order_of_the_seed():
    first, again, other = Shuffle(50, seed=1), Shuffle(50, seed=1), Shuffle(50, seed=2)
    epochs = [list(first) for _ in range(2)]
    assert [list(again) for _ in range(2)] == epochs
    assert epochs[0] != epochs[1] != list(other)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(50))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 4, 17, 32])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_validation_image_is_seen_once_in_equally_many_batches(
    count: int, batch_size: int, processes: int
) -> None:
    shares = [in_batches(count, batch_size, rank, processes) for rank in range(processes)]
    assert sorted(n for batches in shares for batch in batches for n in batch) == list(range(count))
    assert len({len(batches) for batches in shares}) == 1
    assert all(batch for batches in shares for batch in batches)
    largest = max(len(batch) for batches in shares for batch in batches)
    assert largest <= batch_size + (batch_size == 1 and processes > 1)
    assert len(shares[0]) <= -(-count // (processes * batch_size))


@pytest.mark.parametrize("count", [6, 7])
def test_processes_share_one_order(count: int) -> None:
    samplers = [Shuffle(count, seed=3, rank=rank, processes=2) for rank in range(2)]
    whole = Shuffle(count, seed=3)
    for _ in range(3):
        order, (first, second) = list(whole), map(list, samplers)
        assert len(first) == len(second) == len(samplers[0]) == 3
        assert [n for pair in zip(first, second, strict=True) for n in pair] == order[:6]


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_too_few_images_for_the_devices(shapes_root: Path, tmp_path: Path, share: float) -> None:
    data = SegmentationDataModule(shapes_config(shapes_root, tmp_path / "prepared", val_fraction=share))
    data.prepare_data()
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=4, global_step=0)
    with pytest.raises(CocosegError, match="2 images for training or validation are too few for 4 devices"):
        data.train_dataloader()
