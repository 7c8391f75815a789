"""In which order the training images of an epoch come, and how often each."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class Shuffle(Sampler[int]):
    """All numbers below `count`, in another order each time, which only depends on the seed and how often.

    torch's own sampler draws from its generator again when it is read to its end, which a loader with workers
    does and one without does not; and a loader takes numbers for its workers from a generator given to it.
    """

    def __init__(self, count: int, seed: int):
        self.count = count
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.count, generator=self._generator).tolist())


class Balanced(Sampler[int]):
    """As many numbers as there are images, each as often as its share of the factors asks for.

    An epoch stays as long as without, so that steps, epochs and progress mean the same. An image with the
    expectation of 2.3 comes two times, or in three of ten epochs three times (systematic resampling): chance
    decides no more than that, and which.

    Args:
        factors: of each image, (N,), above 0.
        seed: of order and rounding; beside it only counts how often the sampler was read.
    """

    def __init__(self, factors: np.ndarray, seed: int):
        factors = torch.as_tensor(factors, dtype=torch.float64)
        self.expected: Tensor = factors * (len(factors) / factors.sum())
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.expected)

    def __iter__(self) -> Iterator[int]:
        count = len(self)
        # Of neighbours on the line only one is rounded up: others are neighbours in the next epoch.
        order = torch.randperm(count, generator=self._generator)
        ends = self.expected[order].cumsum(0)
        ends[-1] = count  # whatever was lost to rounding
        passed = (ends + torch.rand(1, generator=self._generator, dtype=torch.float64)).floor().long()
        numbers = order.repeat_interleave(passed.diff(prepend=torch.zeros(1, dtype=torch.long)))
        return iter(numbers[torch.randperm(count, generator=self._generator)].tolist())


class Share(Sampler[int]):
    """Every so many-th number of another sampler, which draws the same in all processes of a training.

    All processes get equally many: what is left over waits for another order.
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
    """All numbers below `count`, each in one batch of one process.

    All processes get equally many batches, between which they can agree on going on. For that, batches are of
    about equal size where there are several; for batches of 1 some process may get one of 2.

    Args:
        count: no less than `processes`.
    """
    if processes == 1:
        return [list(range(begin, min(begin + batch_size, count))) for begin in range(0, count, batch_size)]
    own = range(rank, count, processes)
    batches = min(-(-count // (processes * batch_size)), count // processes)
    ends = [len(own) * number // batches for number in range(batches + 1)]
    return [list(own[begin:end]) for begin, end in pairwise(ends)]


def repeat_factors(counts: np.ndarray) -> np.ndarray:
    """How often each image shall come, against one that shows common classes only: (N,), at least 1.

    The repeat factors of LVIS (Gupta et al. 2019, arXiv 1908.03195): max(1, sqrt(t / f)) of the rarest class
    that the image shows, where f is the share of images that show the class. The threshold t is the mean of f
    over the classes that occur, so that it need not be chosen for each data set. Background takes no part.

    Args:
        counts: pixels per image and class, (N, C), background first.
    """
    shows = counts[:, 1:] > 0
    share = shows.mean(0)
    occurs = share > 0
    if not occurs.any():
        return np.ones(len(counts))
    threshold = share[occurs].mean()
    of_class = np.sqrt(threshold / np.where(occurs, share, threshold)).clip(min=1)
    return np.where(shows, of_class, 1.0).max(1)
