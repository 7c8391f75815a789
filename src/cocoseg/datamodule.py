"""The data side of training: preparation, split, loaders, batches."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, random_split

from cocoseg.augment import Augment
from cocoseg.config import Config
from cocoseg.cores import available_cores
from cocoseg.dataset import Batches, SegmentationDataset, as_is
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.pixels import normalised
from cocoseg.prepare import prepare
from cocoseg.prepared import PreparedSet, prepared_sets
from cocoseg.stopping import leave_group

Pairs = Dataset[tuple[Tensor, Tensor]]


class Shuffle(Sampler[int]):
    """All numbers below `count`, in another order each time, which only depends on the seed and how often.

    Of several processes each gets every so many-th of that order, and all get equally many: what is left over
    waits for another order.

    torch's own sampler draws from its generator again when it is read to its end, which a loader with workers
    does and one without does not; and a loader takes numbers for its workers from a generator given to it.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, processes: int = 1):
        self.count = count
        self.rank = rank
        self.processes = processes
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=self._generator).tolist()
        return iter(order[self.rank :: self.processes][: len(self)])


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


class SegmentationDataModule(L.LightningDataModule):
    """Masks, data sets and loaders.

    Loaders give bytes, which are a quarter of the way to the device: image (B, 3, H, W) uint8 and mask
    (B, H, W) uint8. What the network gets, augmented where it is trained, is made there: image (B, 3, H, W)
    float32, normalised, and mask (B, H, W) int64.

    Args:
        config: its `data`, `masks`, `prepare`, `augment` and `seed`.
        progress: of the run, 0 to 1, whenever it is called.

    Attributes:
        train_set, val_set: after `setup`; a seeded random split of one prepared set, or two sets where
            `data.val_annotations` is given.
        batch_size: images per training step and device.
    """

    def __init__(self, config: Config, progress: Callable[[], float] = lambda: 1.0):
        super().__init__()
        self.config = config
        self.progress = progress
        self.data = config.data
        self.batch_size = config.data.batch_size
        self._is_prepared = False
        self._augment: Augment | None = None
        self.train_set: Pairs | None = None
        self.val_set: Pairs | None = None

    def prepare_data(self) -> None:
        """Make the masks and the decoded arrays where they are missing; once per machine."""
        if not self._is_prepared:  # train.py asks before Lightning does
            prepare(self.config)
            self.train_set, self.val_set = self._open_sets()  # which makes the arrays
            self._is_prepared = True

    def setup(self, stage: str) -> None:
        """Open the prepared sets; the same seed makes the same split."""
        if self.train_set is None:
            self.train_set, self.val_set = self._open_sets()

    def _open_sets(self) -> tuple[Pairs, Pairs]:
        prepared, prepared_val = prepared_sets(self.config)
        size = self.data.image_size
        larger = self.data.cache_size or size  # training images may be larger, for crops to have room
        train = self._open(prepared, larger)
        self.labels: LabelMap = train.labels
        if prepared_val is not None:
            return train, self._open(prepared_val, size)
        held_out = max(1, round(len(train) * self.data.val_fraction))
        if held_out >= len(train):
            raise CocosegError(
                f"{len(train)} images are too few to hold out {held_out} for validation: "
                "lower data.val_fraction, or give data.val_annotations"
            )
        generator = torch.Generator().manual_seed(self.config.seed)
        train_part, val_part = random_split(train, [len(train) - held_out, held_out], generator)
        if larger != size:
            val_part = Subset(self._open(prepared, size), val_part.indices)
        return train_part, val_part

    def _open(self, prepared: PreparedSet, image_size: list[int]) -> SegmentationDataset:
        dataset = SegmentationDataset(prepared.subset_file, prepared.image_dir, tuple(image_size))
        if self.data.cache:
            dataset.decode_once(self.config.prepare.workers)
        return dataset

    def class_counts(self) -> np.ndarray:
        """Pixels of each class in each training mask: (N, C) int32."""
        return Batches(self.train_set).class_counts()[:, : len(self.labels)]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        # A resumed run takes another order: killed again and again, it would see the same first images only.
        done = self.trainer.global_step if self.trainer else 0
        rank, processes = self._share()
        size = tuple(self.data.image_size)
        self._augment = Augment(self.config.augment, size, seed=self.config.seed + done + (rank << 32))
        sampler = Shuffle(len(self.train_set), self.config.seed + done, rank, processes)
        # A last batch of one image could leave BatchNorm a single value per channel.
        drop_last = len(sampler) >= self.batch_size
        return self._loader(self.train_set, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        batches = in_batches(len(self.val_set), self.batch_size, *self._share())
        return self._loader(self.val_set, batch_sampler=batches)

    def _share(self) -> tuple[int, int]:
        """Which of how many processes this is."""
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        for name, images in (("training", self.train_set), ("validation", self.val_set)):
            if len(images) < processes:
                raise CocosegError(
                    f"{len(images)} {name} images are too few for {processes} devices: lower trainer.devices"
                )
        return rank, processes

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], index: int) -> tuple[Tensor, Tensor]:
        """On the device: bytes to what the network takes; training images are augmented."""
        image, mask = batch
        if self.trainer.training:
            return self._augment(image, mask, self.progress())
        return normalised(image), mask.long()

    def _loader(self, dataset: Pairs, **options: object) -> DataLoader[tuple[Tensor, Tensor]]:
        workers = self._num_workers()
        return DataLoader(
            Batches(dataset),
            num_workers=workers,
            collate_fn=as_is,
            persistent_workers=workers > 0,
            worker_init_fn=leave_group,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _num_workers(self) -> int:
        """As set, else: decoding takes all cores; decoded images are copied while a GPU computes, and on a
        CPU there is nothing to overlap."""
        if self.data.num_workers is not None:
            return self.data.num_workers
        if self.data.cache:
            return 1 if torch.cuda.is_available() else 0
        here = self.trainer.num_devices if self.trainer else 1  # processes that share the cores
        return max(1, min(available_cores() // here, 8))
