"""Split into training and validation images; their order in an epoch; their distribution over processes."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.utils.data import Sampler

from cocoseg.config import Config, as_pair
from cocoseg.data.dataset import SegmentationDataset, Split
from cocoseg.data.own_dataset import open_own_splits
from cocoseg.data.weighted_split import WeightedSplit, require_held_out
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepared_folder import PreparedSet, extra_sets, has_settings, prepared_sets


def open_splits(config: Config, *, decode_once: bool, bits: int | None = None) -> tuple[Split, Split]:
    """Open the images to train on and those to validate on.

    With `data.val_annotations` or `data.val_masks` they are two prepared sets, with `data._target_` the
    user's own, else a seeded random split of one set. The images of `data.extra` are all trained on.

    Args:
        decode_once: read and write the decoded arrays of `SegmentationDataset.decode_once`.
        bits: bit depth of images of more than 8 bits; None for that of the training set.

    Raises:
        CocosegError: a set can't be read, has too few images to be split, or `data.extra` has validation
            images.
    """

    def open_set(
        prepared: PreparedSet, image_size: list[int], bits: int | None = bits
    ) -> SegmentationDataset:
        size = as_pair(image_size)
        dataset = SegmentationDataset(prepared.folder, prepared.image_dir, size, bits)
        if not has_settings(prepared):
            raise CocosegError(
                f"{prepared.folder}: another command has changed it since this one prepared it; name another "
                "data.prepared_dir for one of the two"
            )
        return dataset

    data = config.data
    larger = data.cache_size or data.image_size  # training images may be larger, for crops to have room
    if data.own is not None:
        return open_own_splits(data.own, larger, data.image_size)
    prepared, prepared_val = prepared_sets(config)
    train = open_set(prepared, larger)
    if prepared_val is not None:
        parts, val = [Split(train)], Split(open_set(prepared_val, data.image_size, train.bits))
    else:
        train_indices, val_indices = split_indices(len(train), data.val_fraction, config.seed)
        smaller = train if larger == data.image_size else open_set(prepared, data.image_size)
        parts, val = [Split(train, train_indices)], Split(smaller, val_indices)
    for extra in extra_sets(config):
        parts.append(Split(open_set(extra, larger, train.bits)))
        require_held_out(val, parts[-1], extra.origin)
    if decode_once:
        for dataset in dict.fromkeys(split.dataset for split in (*parts, val)):
            dataset.decode_once(config.prepare.workers)
    weights = [1.0, *(extra.weight for extra in data.extra)]
    return parts[0] if len(parts) == 1 else WeightedSplit(parts, weights), val


def split_indices(images: int, val_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Choose, by the seed, images to train on and to hold out. Raise CocosegError where there are too few."""
    held_out = max(1, round(images * val_fraction))
    if held_out >= images:
        raise CocosegError(
            f"{images} images are too few to hold out {held_out} for validation: "
            "lower data.val_fraction, or give data.val_annotations"
        )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    return order[:-held_out], order[-held_out:]


class Shuffle(Sampler[int]):
    """One process's share of the indices below `count`, in a new order each epoch.

    The order depends on seed and epoch only, so it is the same in all processes. All get the same number of
    indices; the rest is left out in that epoch. The order of torch's RandomSampler depends on the number of
    loader workers, too.

    With `counts_epochs` the indices of epoch e, counted from 0, are increased by `e * count`, which tells
    `TransformedSplit` the epoch.
    """

    def __init__(
        self, count: int, seed: int, rank: int = 0, processes: int = 1, *, counts_epochs: bool = False
    ):
        self.count = count
        self.epoch, self.counts_epochs = 0, counts_epochs
        self.rank, self.processes = rank, processes
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[int]:
        drawn = torch.randperm(self.count, generator=self._generator)
        order: list[int] = (drawn + self.count * self.epoch).tolist()
        self.epoch += self.counts_epochs
        return iter(order[self.rank :: self.processes][: len(self)])


def in_batches(count: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[list[int]]:
    """Batches of indices below `count` for one process. Every index is in one batch of one process.

    All processes get the same number of batches, so that after each they can decide together whether to
    continue. With several processes batches have about equal sizes; a `batch_size` of 1 may become 2.

    Args:
        count: at least `processes`.
    """
    if processes == 1:
        return [list(range(begin, min(begin + batch_size, count))) for begin in range(0, count, batch_size)]
    own = range(rank, count, processes)
    batches = min(-(-count // (processes * batch_size)), count // processes)
    ends = [len(own) * index // batches for index in range(batches + 1)]
    return [list(own[begin:end]) for begin, end in pairwise(ends)]
