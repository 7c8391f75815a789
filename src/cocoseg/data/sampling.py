"""Order of the images in an epoch, and their distribution over processes."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch.utils.data import Sampler


class Shuffle(Sampler[int]):
    """All indices below `count`, in a new order each epoch that depends on seed and epoch only.

    torch's RandomSampler draws from its generator once more at the end of an epoch, which a loader with
    workers reads and one without does not. A loader also draws seeds for its workers from a generator that it
    is given.
    """

    def __init__(self, count: int, seed: int):
        self.count = count
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self._generator).tolist())


class Share(Sampler[int]):
    """One process's share of another sampler, which draws the same order in all processes of a training.

    All processes get equally many indices; the rest of an epoch is left out.
    """

    def __init__(self, whole: Sampler[int], rank: int, processes: int):
        self.whole = whole
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.whole) // self.processes

    def __iter__(self) -> Iterator[int]:
        return iter(list(self.whole)[self.rank :: self.processes][: len(self)])


def in_batches(count: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[list[int]]:
    """Batches of indices below `count` for one process; every index is in one batch of one process.

    All processes get equally many batches, so that they can decide together after each whether to continue.
    With several processes batches have about equal sizes; a `batch_size` of 1 may become 2.

    Args:
        count: no less than `processes`.
    """
    if processes == 1:
        return [list(range(begin, min(begin + batch_size, count))) for begin in range(0, count, batch_size)]
    own = range(rank, count, processes)
    batches = min(-(-count // (processes * batch_size)), count // processes)
    ends = [len(own) * index // batches for index in range(batches + 1)]
    return [list(own[begin:end]) for begin, end in pairwise(ends)]
