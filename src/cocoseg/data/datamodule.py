"""Data of a training: preparation, split, loaders, and batches on the device."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cocoseg import distributed
from cocoseg.config import AUTO, Config, as_pair
from cocoseg.config_checks import convert
from cocoseg.config_cross_checks import check
from cocoseg.data.augment import Augment
from cocoseg.data.class_balance import classes_in_one_set, classes_lost_by_resizing, require_classes
from cocoseg.data.dataset import Split, as_is
from cocoseg.data.extra_transforms import ExtraTransforms, TransformedSplit
from cocoseg.data.sampling import Shuffle, in_batches, open_splits
from cocoseg.data.training_images import write_training_images
from cocoseg.errors import CocosegError, count_of
from cocoseg.labels import LabelMap
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import read_index
from cocoseg.workers import available_cores, leave_group

log = logging.getLogger(__name__)

RANK_SEEDS = 2654435761  # distance of the ranks' seeds, of which torch takes the low 32 bits only
GROUPS = ("seed", "masks", "prepare", "augment")  # settings of a data module that are not below `data`


class SegmentationDataModule(L.LightningDataModule):
    """Masks, data sets and loaders.

    Loaders yield image (B, 3, H, W) uint8 and mask (B, H, W) uint8, a quarter of the memory of floats. On the
    device they become image (B, 3, H, W) float32, normalized, and mask (B, H, W) int64. Training batches are
    augmented there. With weights in `data.extra` a training batch has a third part, the weight of each image
    in the loss: (B,) float32, in the host's memory. `test` and `predict` use the validation images. To score
    other images, name them as `val_images` and `val_annotations` of another data module.

    The recipe calls `prepare_data` and `setup` before Lightning does; the second calls do nothing. On several
    devices the trainer needs `use_distributed_sampler=False`, because the loaders of training and validation
    give each process its own images.

    Args:
        config: its `data`, `masks`, `prepare`, `augment` and `seed` are used; None for `settings`.
        progress: returns the progress of the run, 0 to 1.
        settings: as in `images="photos", annotations="photos.json", augment={"flip": 0.5}`, or
            `images="photos", masks="masks"`, see `config_of`.

    Attributes:
        train_set, val_set, augment: set by `setup`.
        batch_size: images per batch and device; 0 until `auto` has found one.

    Raises:
        CocosegError: a setting is wrong, or a file is missing.
    """

    train_set: Split
    val_set: Split
    augment: Augment

    def __init__(
        self, config: Config | None = None, progress: Callable[[], float] = lambda: 1.0, **settings: Any
    ):
        super().__init__()
        if config is not None and settings:
            raise TypeError(f"give either a config or settings, not both: {', '.join(settings)}")
        self.config = config = config or config_of(**settings)
        self.progress = progress
        self.data = config.data
        self.cached = self.data.cache and self.data.own is None
        size = as_pair(self.data.cache_size or self.data.image_size)
        self.extra = ExtraTransforms(config.augment.extra, size) if config.augment.extra else None
        self.batch_size = 0 if config.data.batch_size == AUTO else config.data.batch_size
        self._is_set_up = False

    @property
    def labels(self) -> LabelMap:
        """The classes, background first. Before `setup` this prepares the data."""
        if not self._is_set_up:
            self.prepare_data()
            self.setup("fit")
        return self.train_set.dataset.labels

    def prepare_data(self) -> None:
        """Make masks and decoded arrays that are missing, in one process per machine."""
        if self._is_set_up or self.data.own is not None:
            return
        if distributed.is_first_of_machine():
            prepare(self.config)
            open_splits(self.config, decode_once=self.cached)  # makes the arrays
        distributed.barrier()

    def setup(self, stage: str) -> None:
        """Open the prepared sets and build the augmentation."""
        if self._is_set_up:
            return
        self.train_set, self.val_set = open_splits(self.config, decode_once=self.cached)
        self.augment = Augment(self.config.augment, as_pair(self.data.image_size), self.config.seed)
        self._is_set_up = True
        added = len(self.train_set) - len(self.train_set.indices)  # `indices`: of the first set
        note = f" ({added} of them of data.extra)" if added else ""
        images = count_of(len(self.train_set), "image")
        log.info("training on %s%s, validating on %d", images, note, len(self.val_set))
        if self.cached:  # without arrays the counts would need all masks to be read
            counts = self.train_set.class_counts(), self.val_set.class_counts()
            require_classes(counts[0], self.data.cache_size or self.data.image_size)
            pixels = read_index(self.train_set.dataset.folder).pixels
            lost = classes_lost_by_resizing(pixels, *counts, labels=self.labels)
            for warning in lost + classes_in_one_set(*counts, self.labels):
                log.warning(warning)

    def describe(self, network: dict[str, Any], license: str | None = None) -> ModelSpec:
        """Return the description of a network that is trained on these data."""
        images, size = self.train_set.dataset, as_pair(self.data.image_size)
        return ModelSpec(network, self.labels, size, license, images.exif, images.bits)

    def write_training_images(self, run_dir: Path, earlier: Iterable[str | None]) -> None:
        """Write the images of this training, and those of the `earlier` model files, to the run folder."""
        if distributed.rank() == 0 and self.data.own is None:
            write_training_images(run_dir, self.train_set.image_keys(), earlier)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # A resumed run takes another order. Otherwise a run that is killed again and again would see the same
        # few images each time.
        seed = self.config.seed + (self.trainer.global_step if self.trainer else 0)
        rank, ranks = self._rank()
        self.augment.seed(seed + rank * RANK_SEEDS)
        split = self.train_set if self.extra is None else TransformedSplit(self.train_set, self.extra, seed)
        sampler = Shuffle(len(split), seed, rank, ranks, counts_epochs=self.extra is not None)
        # BatchNorm can't normalize the single value per channel that a last batch of one image may give it.
        drop_last = len(sampler) >= self.batch_size
        return self._loader(split, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        batches = in_batches(len(self.val_set), self.batch_size, *self._rank())
        return self._loader(self.val_set, batch_sampler=batches)

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        # Not the batches of validation: Lightning makes the batch sampler anew, which a list does not allow.
        return self._loader(self.val_set, batch_size=self.batch_size)

    def _rank(self) -> tuple[int, int]:
        """Rank of this process, and the number of processes."""
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        fewest = min(len(self.train_set), len(self.val_set))
        if fewest < ranks:
            raise CocosegError(
                f"{fewest} images for training or validation are too few for {ranks} devices: "
                "lower trainer.devices"
            )
        return rank, ranks

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move image and mask. The weights stay: the loss reads them, and would have to wait for a GPU."""
        image, mask, *weight = batch
        return *super().transfer_batch_to_device((image, mask), device, dataloader_idx), *weight

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], index: int) -> tuple[Tensor, ...]:
        """Convert a batch of bytes to the network's input, and augment training images."""
        image, mask, *weight = batch
        if self.trainer is not None and self.trainer.training:
            return *self.augment(image, mask, self.progress()), *weight
        return normalize(image), mask.long()

    def _loader(self, split: Split, **options: Any) -> DataLoader[tuple[Tensor, ...]]:
        workers = self._num_workers()
        return DataLoader(
            split,
            num_workers=workers,
            collate_fn=as_is,
            persistent_workers=workers > 0,
            worker_init_fn=leave_group,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def _num_workers(self) -> int:
        """Number of a loader's worker processes.

        Decoding takes all cores. Cached images are only copied, which one worker does while a GPU computes.
        """
        if self.data.num_workers is not None:
            return self.data.num_workers
        if self.cached and self.extra is None:
            return 1 if torch.cuda.is_available() else 0
        here = self.trainer.num_devices if self.trainer else 1  # ranks that share the cores
        return max(1, min(available_cores() // here, 8))


def config_of(**settings: Any) -> Config:
    """Check settings as on the command line. All images are used, as with `data=custom`.

    Args:
        settings: those of `data` by their names without `data.`; `seed`; dictionaries `masks`, `prepare` and
            `augment`. A path as `masks` is the folder of mask images, `data.masks`.
    """
    is_folder = isinstance(settings.get("masks"), str | Path)
    own = [name for name in GROUPS if name in settings and not (name == "masks" and is_folder)]
    groups = {name: settings.pop(name) for name in own}
    subset = {"size": None, "keep_empty": True, **settings.pop("subset", {})}
    config = convert({**groups, "data": {**settings, "subset": subset}}, Config)
    check(config)
    if config.data.batch_size == AUTO:
        raise CocosegError("data.batch_size=auto is only for train.py and cocoseg.train; give a number")
    return config
