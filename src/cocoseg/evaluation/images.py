"""The images on which a model is scored, with their masks at their own size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cocoseg.config import DataConfig, EvaluateConfig
from cocoseg.data.dataset import SegmentationDataset, Split
from cocoseg.data.sampling import open_splits
from cocoseg.data.training_images import Key, keys_of
from cocoseg.networks.pixels import resize_images
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import all_sets
from cocoseg.workers import available_cores, leave_group

BATCH = 16  # images of a batch with data.batch_size=auto


@dataclass(frozen=True)
class Sample:
    """An image and its mask.

    Attributes:
        index: position among the images of the evaluation.
        image: the network's input, (1, 3, H, W) uint8.
        mask: (h, w) uint8 class indices, at the image's own size.
    """

    index: int
    image: Tensor
    mask: np.ndarray


class Images(Dataset[Sample]):
    """Images of one or two prepared sets, in the order of their files.

    Args:
        parts: all or some images of each set.
        image_size: (height, width) of the network's input; None for each image's own.

    Attributes:
        labels, encoding: of the first set; those of the second are the same.
        names: file names of the images; if they are not unique, below a folder for each set.
    """

    def __init__(self, parts: Sequence[Split], image_size: tuple[int, int] | None):
        self.image_size = image_size
        self._images = [(part.dataset, index) for part in parts for index in part.indices]
        self.names = [dataset.pairs[index][0] for dataset, index in self._images]
        if len(set(self.names)) < len(self.names):
            folders = [f"set{number}" for number, part in enumerate(parts, start=1) for _ in range(len(part))]
            self.names = [f"{folder}/{name}" for folder, name in zip(folders, self.names, strict=True)]
        self.labels, self.encoding = parts[0].dataset.labels, parts[0].dataset.encoding

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image, mask = self.original(index)
        image = image[None] if self.image_size is None else resize_images(image[None], self.image_size)
        return Sample(index, image, mask)

    def image_keys(self) -> list[Key]:
        """Name and file size of each image, as in training_images.json."""
        return [keys_of(dataset.image_dir, [dataset.pairs[index][0]])[0] for dataset, index in self._images]

    def original(self, index: int) -> tuple[Tensor, np.ndarray]:
        """Image (3, h, w) uint8 RGB and mask (h, w) uint8."""
        dataset, index_in_set = self._images[index]
        return dataset.original(index_in_set)


def open_images(
    config: EvaluateConfig, image_size: tuple[int, int] | None, bits: int | None = None
) -> Images:
    """Prepare the data if need be, and open the images of `config.split`.

    `val` is the validation file where there is one, else the images that a training with the same settings
    holds out. `train` is the rest, `all` is both.

    Args:
        bits: bit depth of images of more than 8 bits, as in the model's training.

    Raises:
        CocosegError: bad data.
    """
    prepare(config, for_training=False)  # images without any object show false alarms
    if config.split == "all":  # the order is that of the files
        sets = all_sets(config)
        parts = [Split(SegmentationDataset(one.folder, one.image_dir, bits=bits)) for one in sets]
        return Images(parts, image_size)
    train, val = open_splits(config, decode_once=False, bits=bits)
    return Images([train if config.split == "train" else val], image_size)


def make_loader(images: Images, data: DataConfig, *, on_gpu: bool) -> DataLoader[Sample]:
    """Make a loader whose batches are lists of samples."""
    workers = data.num_workers
    if workers is None:  # on a CPU the network takes all cores
        workers = min(available_cores(), 8) if on_gpu else 0
    size = BATCH if isinstance(data.batch_size, str) else data.batch_size
    return DataLoader(images, size, num_workers=workers, collate_fn=list, worker_init_fn=leave_group)
