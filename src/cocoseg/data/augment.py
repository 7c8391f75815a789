"""Augmentation of training batches: the random numbers, and the order in which transforms are applied.

transforms.py holds the transforms. They work on whole batches, on the device of the images. Random numbers
are drawn on the CPU, from a separate generator, so that the results are the same on every device.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.config import AugmentConfig
from cocoseg.data.transforms import (
    CLASSES,
    apply_color,
    class_mix,
    color_matrix,
    crop_matrix,
    gaussian_blur,
    interval,
    warp,
)
from cocoseg.labels import IGNORE_INDEX
from cocoseg.networks.pixels import normalize, resize_masks

BLUR_SIGMA = (0.3, 1.5)  # pixels
HOLE = (0.1, 0.4)  # height and width of a cutout, as shares of those of the image
FULL_SIZE_FROM = 0.6  # progress from which on images have their full size
MULTIPLE = 16  # pixels; a UNet would pad other sizes

COLOR = ("brightness", "contrast", "saturation", "hue", "greyscale")
# Random numbers from 0 to 1 of each image; one for each class follows. All are drawn every time, so that
# switching off one transform does not change what the others do.
DRAWS = (
    *("flip", "scale", "across", "down", "rotate"),
    *COLOR,
    *("blur", "sigma", "mix", "hole", "hole_height", "hole_width", "hole_top", "hole_left"),
)


class Augment:
    """Random transforms of a batch, with random numbers for each image.

    A call maps image (B, 3, h, w) uint8 RGB and mask (B, h, w) uint8 to image (B, 3, H, W) float32,
    normalized, channels last in memory, and mask (B, H, W) int64. H and W depend on the progress of the run,
    from 0 to 1, see `training_size`. Images are sampled bilinearly, masks at the nearest pixel. Pixels beyond
    the border get the mean color and the ignore index.

    Args:
        settings: the transforms and their strength.
        image_size: full (H, W) in pixels.
        seed: seed of all random numbers.
    """

    def __init__(self, settings: AugmentConfig, image_size: tuple[int, int], seed: int):
        self.settings = settings
        self.image_size = image_size
        self._generator = torch.Generator()
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the random numbers again, from this seed."""
        self._generator.manual_seed(seed)

    def __call__(self, image: Tensor, mask: Tensor, progress: float = 1.0) -> tuple[Tensor, Tensor]:
        settings = self.settings
        size = training_size(self.image_size, settings.start_size, progress)
        numbers = torch.rand(len(image), len(DRAWS) + CLASSES, generator=self._generator)
        draws = dict(zip(DRAWS, numbers[:, : len(DRAWS)].unbind(1), strict=True))
        image, mask = self._to_size(normalize(image), mask, draws, size)
        if any(getattr(settings, name) for name in COLOR):
            image = apply_color(image, *self._color(draws))
        if settings.blur:
            chosen = draws["blur"] < settings.blur
            image = gaussian_blur(image, chosen, between(draws["sigma"], *BLUR_SIGMA))
        if settings.class_mix:
            chosen = draws["mix"] < settings.class_mix
            image, mask = class_mix(image, mask, chosen, ranks=numbers[:, len(DRAWS) :])
        if settings.cutout:
            hole = self._hole(draws, size, image.device)
            image = image.masked_fill(hole.unsqueeze(1), 0.0)
            mask = mask.masked_fill(hole, IGNORE_INDEX)
        return image.contiguous(memory_format=torch.channels_last), mask.long()

    def _to_size(
        self, image: Tensor, mask: Tensor, draws: dict[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Flip, scale, crop and rotate to (height, width)."""
        flip = draws["flip"] < self.settings.flip
        if self.settings.scale != [1, 1] or self.settings.rotate:
            return warp(image, mask, self._crop(draws, flip, size), size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
            mask = resize_masks(mask, size)
        if self.settings.flip:
            flip = flip.to(image.device, non_blocking=True).view(-1, 1, 1)
            image = torch.where(flip.unsqueeze(1), image.flip(-1), image)
            mask = torch.where(flip, mask.flip(-1), mask)
        return image, mask

    def _crop(self, draws: dict[str, Tensor], flip: Tensor, size: tuple[int, int]) -> Tensor:
        """Random crops as matrices (B, 2, 3). Scales are distributed evenly over their logarithms."""
        low, high = (math.log(scale) for scale in self.settings.scale)
        return crop_matrix(
            extent=torch.exp(-between(draws["scale"], low, high)),
            across=between(draws["across"], -1.0, 1.0),
            down=between(draws["down"], -1.0, 1.0),
            angle=between(draws["rotate"], -1.0, 1.0) * math.radians(self.settings.rotate),
            flip=flip,
            size=size,
        )

    def _color(self, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Random color changes as `color_matrix` returns them."""
        brightness, contrast, saturation = (
            1 + getattr(self.settings, name) * between(draws[name], -1.0, 1.0)
            for name in ("brightness", "contrast", "saturation")
        )
        saturation = torch.where(draws["greyscale"] < self.settings.greyscale, 0.0, saturation)
        hue = self.settings.hue * between(draws["hue"], -1.0, 1.0)
        return color_matrix(brightness, contrast, saturation, hue)

    def _hole(self, draws: dict[str, Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
        """Random rectangles of the images that get one: (B, H, W) bool."""
        rows = interval(between(draws["hole_height"], *HOLE), draws["hole_top"], size[0])
        columns = interval(between(draws["hole_width"], *HOLE), draws["hole_left"], size[1])
        rows = rows & (draws["hole"] < self.settings.cutout).unsqueeze(1)
        rows, columns = rows.to(device, non_blocking=True), columns.to(device, non_blocking=True)
        return rows.unsqueeze(2) & columns.unsqueeze(1)


def training_size(image_size: tuple[int, int], start: float, progress: float) -> tuple[int, int]:
    """Height and width of training images at a progress of the run, 0 to 1.

    Early in a run small images teach almost as much as large ones, in a fraction of the time. There are three
    sizes: `start` times the full size, the mean of both, and the full size from `FULL_SIZE_FROM` on. With
    more sizes cuDNN would choose its algorithms, and torch compile networks, more often.
    """
    if progress >= FULL_SIZE_FROM or start == 1:
        return image_size
    share = start if progress < FULL_SIZE_FROM / 2 else (1 + start) / 2
    height, width = (min(side, math.ceil(share * side / MULTIPLE) * MULTIPLE) for side in image_size)
    return height, width


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Map numbers from 0..1 to low..high."""
    return low + (high - low) * numbers
