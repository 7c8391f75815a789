"""The data side of training: preparation, split, loaders."""

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from cocoseg.config import Config
from cocoseg.cores import available_cores
from cocoseg.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.prepare import prepare
from cocoseg.prepared import prepared_sets
from cocoseg.stopping import leave_group

Pairs = Dataset[tuple[Tensor, Tensor]]


class SegmentationDataModule(L.LightningDataModule):
    """Masks, data sets and loaders.

    Batches are `(image, mask)`: image (B, 3, H, W) float32, mask (B, H, W) int64.

    Args:
        config: its `data`, `masks`, `prepare` and `seed`.

    Attributes:
        train_set, val_set: after `setup`; a seeded random split of one prepared set, or two sets where
            `data.val_annotations` is given.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.data = config.data
        self._is_prepared = False
        self.train_set: Pairs | None = None
        self.val_set: Pairs | None = None

    def prepare_data(self) -> None:
        """Make the masks where they are missing; once per machine."""
        if not self._is_prepared:  # train.py asks before Lightning does
            prepare(self.config)
            self._is_prepared = True

    def setup(self, stage: str) -> None:
        """Open the prepared sets; the same seed makes the same split."""
        if self.train_set is not None:
            return
        prepared, prepared_val = prepared_sets(self.config)
        size = tuple(self.data.image_size)
        full = SegmentationDataset(prepared.subset_file, prepared.image_dir, size)
        self.labels: LabelMap = full.labels
        if prepared_val is not None:
            self.train_set = full
            self.val_set = SegmentationDataset(prepared_val.subset_file, prepared_val.image_dir, size)
            return
        held_out = max(1, round(len(full) * self.data.val_fraction))
        if held_out >= len(full):
            raise CocosegError(
                f"{len(full)} images are too few to hold out {held_out} for validation: "
                "lower data.val_fraction, or give data.val_annotations"
            )
        generator = torch.Generator().manual_seed(self.config.seed)
        self.train_set, self.val_set = random_split(full, [len(full) - held_out, held_out], generator)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        # A last batch of one image could leave BatchNorm a single value per channel.
        drop_last = len(self.train_set) >= self.data.batch_size
        # A resumed run takes another order: killed again and again, it would see the same first images only.
        done = self.trainer.global_step if self.trainer is not None else 0
        generator = torch.Generator().manual_seed(self.config.seed + done)
        return self._loader(self.train_set, shuffle=True, drop_last=drop_last, generator=generator)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, dataset: Pairs, **options: object) -> DataLoader[tuple[Tensor, Tensor]]:
        workers = self.data.num_workers
        if workers is None:
            workers = min(available_cores(), 8)
        return DataLoader(
            dataset,
            batch_size=self.data.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_group,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
