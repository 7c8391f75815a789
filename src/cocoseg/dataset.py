"""Pairs of images and label masks from a prepared folder. No Lightning."""

import json
from pathlib import Path

import msgspec
import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from cocoseg.encoding import MaskEncoding
from cocoseg.errors import CocosegError
from cocoseg.images import read_image
from cocoseg.spec import MEAN, STD


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
        self._encoding = MaskEncoding.load(self.folder)
        self.labels = self._encoding.labels
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

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image_name, mask_name = self.pairs[number]
        image = read_image(self.image_dir / image_name)
        mask = PIL.Image.fromarray(self._encoding.read(self.folder / mask_name))
        if mask.size != image.size:
            raise CocosegError(
                f"{self.image_dir / image_name}: {image.size[0]}x{image.size[1]}, but its mask is "
                f"{mask.size[0]}x{mask.size[1]}: the image was replaced; delete {self.folder} to prepare anew"
            )
        return self._resized_image(image), self._resized_mask(mask)

    def _resized_image(self, image: PIL.Image.Image) -> Tensor:
        # (3, H, W) uint8; torch's integer kernel is several times faster than Pillow's.
        pixels = tv.resize(tv.pil_to_tensor(image), list(self.image_size), antialias=True)
        return tv.normalize(tv.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(STD))

    def _resized_mask(self, mask: PIL.Image.Image) -> Tensor:
        height, width = self.image_size
        # Pillow samples at pixel centres, as the bilinear resize does; torch's "nearest" does not.
        resized = mask.resize((width, height), PIL.Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(resized, dtype=np.int64))
