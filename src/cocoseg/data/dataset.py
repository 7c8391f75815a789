"""Images and label masks of a prepared folder, one by one or in batches. No Lightning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from cocoseg.data.cache import Arrays, count, key_of, open_arrays
from cocoseg.data.training_images import Key, keys_of
from cocoseg.errors import CocosegError
from cocoseg.files import read_json
from cocoseg.images.image_files import read_image
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.networks.pixels import normalize, resize_images
from cocoseg.preparation.prepared_folder import read_index
from cocoseg.resizing import resize_mask


class _Named(msgspec.Struct, gc=False):
    file_name: str


class _Images(msgspec.Struct, gc=False):
    images: list[_Named]


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images of a prepared folder and their masks, resized to one size.

    An item is `(image, mask)`: image (3, H, W) float32, normalized with the ImageNet mean and standard
    deviation; mask (H, W) int64 of class indices, 255 where ignored. Images are resized bilinearly with
    antialiasing, masks to the nearest pixel.

    Args:
        subset_file: a folder that `prepare.py` wrote, or the `subset_*_annotations.json` in it: then only the
            images that it lists are read.
        image_dir: folder of the images.
        image_size: (height, width) in pixels.
        bits: bit depth of images of more than 8 bits, see `read_image`; None for that of the prepared set.

    Attributes:
        folder: the prepared folder.
        labels: the classes.
        encoding: encoding of the mask files.
        pairs: names of image and mask, below `image_dir` and `folder`.
        exif: `apply` or `ignore`, for images with an EXIF rotation; None where there are none.
        bits: bit depth from which images of more than 8 bits are scaled; None where there are none.

    Raises:
        CocosegError: the folder is not prepared. On access: an image or mask can't be read, or the folder has
            been prepared again meanwhile.
    """

    def __init__(
        self,
        subset_file: str | Path,
        image_dir: str | Path,
        image_size: tuple[int, int] = (224, 224),
        bits: int | None = None,
    ):
        subset_file = Path(subset_file)
        self.image_dir, self.image_size = Path(image_dir), image_size
        self.folder = subset_file if subset_file.is_dir() else subset_file.parent
        self._prepared = self._state()
        self.encoding = MaskEncoding.load(self.folder)
        self.labels = self.encoding.labels
        index = read_index(self.folder)
        masks = {pair.image: pair.mask for pair in index.pairs}
        self.pairs: list[tuple[str, str]] = list(masks.items())
        try:
            if self.folder != subset_file:
                listed = read_json(subset_file, _Images).images
                self.pairs = [(image.file_name, masks[image.file_name]) for image in listed]
        except (OSError, ValueError, KeyError) as error:
            raise CocosegError(f"{self.folder}: not a prepared folder ({error}); run prepare.py") from error
        self.exif, self.bits = index.exif, bits or index.bits
        # EXIF orientations, by image; those that are 1 are left out.
        self._turns = {pair.image: pair.orientation for pair in index.pairs if pair.orientation != 1}
        self._require_unchanged()
        self._arrays: Arrays | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.read([index])
        return normalize(image[0]), mask[0].long()

    def read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read image (B, 3, H, W) uint8 RGB, channels last in memory, and mask (B, H, W) uint8."""
        if self._arrays is not None:
            image, mask = self._arrays.take(indices)
        else:
            parts = zip(*map(self._decode, indices), strict=True)
            image, mask = (torch.from_numpy(np.stack(part)) for part in parts)
        return image.permute(0, 3, 1, 2), mask

    def class_counts(self, indices: Sequence[int]) -> np.ndarray:
        """Count pixels per class in resized masks: (B, C) int32. Without arrays the mask files are read."""
        if self._arrays is not None:
            counts = self._arrays.counts[list(indices)]
        else:
            counts = np.stack([count(resize_mask(self._mask(index), self.image_size)) for index in indices])
        return counts[:, : len(self.labels)]

    def decode_once(self, workers: int | None = None) -> None:
        """Read from arrays from now on, see cache.py; `workers` processes make those that are missing."""
        files = [self.image_dir / image for image, _ in self.pairs]
        files += [self.folder / mask for _, mask in self.pairs]
        reading = [self._turns, self.bits]
        key = key_of(files, [self.pairs, self.labels.to_dict(), self.encoding.encoding, reading])
        shape = (len(self), *self.image_size)
        self._arrays = open_arrays(self.folder / "arrays", key, shape, self._decode, workers)

    def original(self, index: int) -> tuple[Tensor, np.ndarray]:
        """Read image (3, h, w) uint8 RGB and mask (h, w) uint8 at the image's own size."""
        name, _ = self.pairs[index]
        path = self.image_dir / name
        pixels = np.array(read_image(path, upright=name in self._turns, bits=self.bits))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        mask = self._mask(index)
        if mask.shape != image.shape[1:]:
            raise CocosegError(
                f"{path}: {image.shape[2]}x{image.shape[1]}, but its mask is "
                f"{mask.shape[1]}x{mask.shape[0]}; delete {self.folder} to prepare it again"
            )
        return image, mask

    def _state(self) -> tuple[int, ...] | None:
        """Size and modification time of `prepared.json`, which a preparation writes first, and again last."""
        try:
            status = (self.folder / "prepared.json").stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns  # no inode: some network drives change it at any time

    def _require_unchanged(self) -> None:
        if self._state() != self._prepared:
            raise CocosegError(
                f"{self.folder}: another command has prepared it again while it is in use, so its masks may "
                "have changed; name another data.prepared_dir for one of the two"
            )

    def _mask(self, index: int) -> np.ndarray:
        image_name, mask_name = self.pairs[index]
        try:
            return self.encoding.read(self.folder / mask_name, self._turns.get(image_name, 1))
        finally:  # another preparation may be why a mask is missing
            self._require_unchanged()

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read image (H, W, 3) and mask (H, W), uint8, at the size of the set."""
        image, mask = self.original(index)
        # (3, H, W) uint8; torch's integer kernel is several times faster than Pillow's.
        pixels = resize_images(image[None], self.image_size)[0]
        return pixels.permute(1, 2, 0).numpy(), resize_mask(mask, self.image_size)


class Split(Subset[tuple[Tensor, Tensor]]):
    """Some images of a data set, or all. A loader with `collate_fn=as_is` yields uint8 batches of them."""

    dataset: SegmentationDataset

    def __init__(self, dataset: SegmentationDataset, indices: Sequence[int] | None = None):
        super().__init__(dataset, range(len(dataset)) if indices is None else indices)

    def __getitems__(self, positions: Sequence[int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Read a batch as `SegmentationDataset.read` does."""
        return self.dataset.read([self.indices[position] for position in positions])

    def class_counts(self) -> np.ndarray:
        """Count pixels per class in each mask: (N, C) int32."""
        return self.dataset.class_counts(self.indices)

    def names(self) -> list[str]:
        """File names of the images."""
        return [self.dataset.pairs[index][0] for index in self.indices]

    def image_keys(self) -> list[Key]:
        """Name and file size of each image, see `keys_of`."""
        return keys_of(self.dataset.image_dir, self.names())


def as_is(batch: Any) -> tuple[Tensor, ...]:
    """Return a batch of `Split` unchanged, as `collate_fn` of a loader."""
    return batch
