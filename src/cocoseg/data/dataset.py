"""Pairs of images and label masks from a prepared folder. No Lightning."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2 import functional as tv

from cocoseg.data.cache import Arrays, Source, count, open_arrays
from cocoseg.errors import CocosegError
from cocoseg.networks.pixels import normalize
from cocoseg.preparation.image_files import read_image
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.resizing import resize_mask


class _Named(msgspec.Struct, gc=False):
    file_name: str


class _Images(msgspec.Struct, gc=False):
    images: list[_Named]


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """The images of a subset file and their masks, resized to one size.

    An item is `(image, mask)`: image (3, H, W) float32, normalised with the ImageNet mean and standard
    deviation; mask (H, W) int64 of class indices, 255 where ignored. Images are resized bilinearly with
    antialiasing, masks to the nearest pixel.

    Args:
        subset_file: a `subset_*_annotations.json` as `prepare.py` writes it, its masks beside it.
        image_dir: the folder that its file names refer to.
        image_size: (height, width) in pixels.

    Attributes:
        labels: the classes.
        encoding: of the masks.

    Raises:
        CocosegError: the folder is not prepared; on access: an image or mask that can't be read.
    """

    def __init__(
        self, subset_file: str | Path, image_dir: str | Path, image_size: tuple[int, int] = (224, 224)
    ):
        subset_file = Path(subset_file)
        self.image_dir = Path(image_dir)
        self.image_size = tuple(image_size)
        self.folder = subset_file.parent
        self.encoding = MaskEncoding.load(self.folder)
        self.labels = self.encoding.labels
        try:
            listed = msgspec.json.decode(subset_file.read_bytes(), type=_Images).images
            pairs = json.loads((self.folder / "index.json").read_bytes())["pairs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CocosegError(f"{self.folder}: not a prepared folder ({error}); run prepare.py") from error
        masks = {pair["image"]: pair["mask"] for pair in pairs}
        missing = [image.file_name for image in listed if image.file_name not in masks]
        if missing:
            raise CocosegError(f"{self.folder}: no mask for {missing[0]}; run prepare.py again")
        self.pairs: list[tuple[str, str]] = [(i.file_name, masks[i.file_name]) for i in listed]
        self._arrays: Arrays | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image, mask = self.read([number])
        return normalize(image[0]), mask[0].long()

    def read(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Image (B, 3, H, W) uint8 RGB, channels last in memory, and mask (B, H, W) uint8."""
        if self._arrays is not None:
            image, mask = self._arrays.take(numbers)
        else:
            parts = zip(*map(self._decode, numbers), strict=True)
            image, mask = (torch.from_numpy(np.stack(part)) for part in parts)
        return image.permute(0, 3, 1, 2), mask

    def class_counts(self, numbers: Sequence[int]) -> np.ndarray:
        """Pixels per class index in the resized masks of these: (B, 256) int32."""
        if self._arrays is not None:
            return self._arrays.counts(numbers)
        masks = (self.encoding.read(self.folder / self.pairs[number][1]) for number in numbers)
        return np.stack([count(resize_mask(mask, self.image_size)) for mask in masks])

    def decode_once(self, workers: int | None = None) -> None:
        """From now on read from arrays, see cache.py, which are made first where they are missing.

        Args:
            workers: processes that make them; None for one per core.

        Raises:
            CocosegError: the disk has too little room, or an image or mask can't be read.
        """
        source = Source(
            images=[self.image_dir / image for image, _ in self.pairs],
            masks=[self.folder / mask for _, mask in self.pairs],
            meaning=[self.pairs, self.labels.to_dict(), self.encoding.encoding],
            image_size=self.image_size,
            decode=self._decode,
        )
        self._arrays = open_arrays(self.folder / "arrays", source, workers)

    def original(self, number: int) -> tuple[Tensor, np.ndarray]:
        """Image (3, h, w) uint8 RGB and mask (h, w) uint8 at the image's own size.

        Raises:
            CocosegError: they can't be read, or don't belong together.
        """
        image_name, mask_name = self.pairs[number]
        image = tv.pil_to_tensor(read_image(self.image_dir / image_name))
        mask = self.encoding.read(self.folder / mask_name)
        if mask.shape != image.shape[1:]:
            raise CocosegError(
                f"{self.image_dir / image_name}: {image.shape[2]}x{image.shape[1]}, but its mask is "
                f"{mask.shape[1]}x{mask.shape[0]}: the image was replaced; "
                f"delete {self.folder} to prepare anew"
            )
        return image, mask

    def _decode(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and mask (H, W), uint8."""
        image, mask = self.original(number)
        # (3, H, W) uint8; torch's integer kernel is several times faster than Pillow's.
        pixels = tv.resize(image, list(self.image_size), antialias=True)
        return pixels.permute(1, 2, 0).numpy(), resize_mask(mask, self.image_size)


Pairs = Dataset[tuple[Tensor, Tensor]]  # image and mask, see SegmentationDataset


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """A data set, or a random part of one, for a loader that takes bytes a batch at a time.

    The quarter of the bytes of float32, and one copy per batch; use `collate_fn=as_is`.
    """

    def __init__(self, part: SegmentationDataset | Subset[tuple[Tensor, Tensor]]):
        self.whole: SegmentationDataset = part.dataset if isinstance(part, Subset) else part
        self.numbers = list(part.indices) if isinstance(part, Subset) else range(len(part))

    def __len__(self) -> int:
        return len(self.numbers)

    def class_counts(self) -> np.ndarray:
        """Pixels per class index in each mask: (N, 256) int32."""
        return self.whole.class_counts(self.numbers)

    def __getitems__(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `SegmentationDataset.read`."""
        return self.whole.read([self.numbers[place] for place in places])


def as_is(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For `DataLoader(collate_fn=…)`: the batch is one already."""
    return batch
