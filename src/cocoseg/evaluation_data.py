"""The images that a model is scored on, with their masks at their own size."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cocoseg.config_evaluate import EvaluateConfig
from cocoseg.cores import available_cores
from cocoseg.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.prepare import prepare
from cocoseg.prepared import PreparedSet, prepared_sets
from cocoseg.split import split
from cocoseg.stopping import leave_group
from cocoseg.trained_on import Key, keys_of


class Sample(NamedTuple):
    """An image and its mask.

    Attributes:
        number: among those of the evaluation.
        inputs: the image as the network is to see it, (1, 3, H, W) uint8 each.
        mask: (h, w) uint8, at the image's own size.
    """

    number: int
    inputs: list[Tensor]
    mask: np.ndarray


class Images(Dataset[Sample]):
    """Images of one or two prepared sets, in the order of their files.

    Args:
        parts: sets, with the numbers of the images that are wanted of each.

    Attributes:
        labels, encoding: of the first set; those of the second are the same.
        names: their file names, below a folder for each set where they would not be unique.
        inputs: makes what the network is to see of an image (1, 3, h, w) uint8; to be set.
    """

    def __init__(self, parts: list[tuple[SegmentationDataset, list[int]]]):
        self._places = [(part, number) for part, numbers in parts for number in numbers]
        self.names = [part.pairs[number][0] for part, number in self._places]
        if len(set(self.names)) < len(self.names):
            folders = [f"set{which}" for which, (_, numbers) in enumerate(parts, start=1) for _ in numbers]
            self.names = [f"{folder}/{name}" for folder, name in zip(folders, self.names, strict=True)]
        self.labels, self.encoding = parts[0][0].labels, parts[0][0].encoding
        self.inputs: Callable[[Tensor], list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Sample:
        image, mask = self.original(number)
        return Sample(number, self.inputs(image[None]), mask)

    def image_keys(self) -> list[Key]:
        """What tells the images apart, in their order."""
        return [
            key for part, number in self._places for key in keys_of(part.image_dir, [part.pairs[number][0]])
        ]

    def original(self, number: int) -> tuple[Tensor, np.ndarray]:
        """Image (3, h, w) uint8 RGB and mask (h, w) uint8."""
        part, place = self._places[number]
        return part.original(place)


def open_images(config: EvaluateConfig) -> Images:
    """Prepare what is not prepared yet, and choose the split.

    `val` is the validation file where there is one, else what a training with the same settings holds out;
    `train` the rest; `all` both.

    Raises:
        CocosegError: bad data, or a split without images.
    """
    prepare(config)
    prepared, prepared_val = prepared_sets(config)
    whole = _opened(prepared)
    everything = list(range(len(whole)))
    if prepared_val is not None:
        val = _opened(prepared_val)
        parts = {"train": [(whole, everything)], "val": [(val, list(range(len(val))))]}
    elif config.split == "all":
        parts = {"train": [(whole, everything)], "val": []}
    else:
        train, held_out = split(len(whole), config.data.val_fraction, config.seed)
        parts = {"train": [(whole, train)], "val": [(whole, held_out)]}
    chosen = [*parts["train"], *parts["val"]] if config.split == "all" else parts[config.split]
    images = Images(chosen)
    if not len(images):
        raise CocosegError(f"split={config.split} holds no image")
    return images


def loader(images: Images, config: EvaluateConfig, *, batch_size: int, on_gpu: bool) -> DataLoader[Sample]:
    """Batches as lists of samples."""
    workers = config.data.num_workers
    if workers is None:  # on a CPU the network takes all cores
        workers = min(available_cores(), 8) if on_gpu else 0
    return DataLoader(
        images, batch_size=batch_size, num_workers=workers, collate_fn=list, worker_init_fn=leave_group
    )


def _opened(prepared: PreparedSet) -> SegmentationDataset:
    return SegmentationDataset(prepared.subset_file, prepared.image_dir)
