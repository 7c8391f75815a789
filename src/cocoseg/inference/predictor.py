"""Prediction of the class of every pixel, for images of any size, in bounded memory.

The network sees what it was trained on: the image resized to the size of training. Its scores are enlarged
bilinearly to the image's own size, and the highest one wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cocoseg.checks import check_prediction
from cocoseg.config import AUTO
from cocoseg.inference.tiling import Box, Size, blend_tiles, choose_tile
from cocoseg.inference.upsampling import Neighbors, argmax_between, enlarged_argmax
from cocoseg.networks.pixels import normalize, resize_images


@dataclass(frozen=True)
class InputResize:
    """Resizes images to the network's input. Holds no network: goes to other processes.

    Attributes:
        image_size: height and width that every image is resized to.
        scale: factor of the image's own size instead, or None.
    """

    image_size: Size
    scale: float | None

    def __call__(self, image: Tensor) -> Tensor:
        """Resize images (B, 3, h, w) uint8 RGB: (B, 3, H, W) uint8."""
        return resize_images(image, self.size(tuple(image.shape[-2:])))

    def size(self, own: Size) -> Size:
        """Height and width of the input for an image of this height and width."""
        if self.scale is None:
            return self.image_size
        # At least 2: torch's antialiased resize fails for a single pixel.
        return max(2, round(own[0] * self.scale)), max(2, round(own[1] * self.scale))


class Predictor:
    """Applies a model to images: resizing, tiles, the mirror image, arg-max at the image's own size.

    Args:
        model: a network with `image_size` (height, width) and `labels`, as `SegmentationModel` has them. It
            is used on the device and in the precision that its weights have.
        scale: None resizes every image to the model's `image_size`, as in training; a number gives the
            network the image's own pixels times it, for images much larger than those of training (satellite,
            microscopy).
        tile: `auto` cuts what would reach the network with more than a million pixels (or more than
            `image_size` has) into overlapping tiles, whose scores are blended; (height, width) is the size of
            tiles in pixels of the network's input; False or None never cuts.
        flip: averages the probabilities of the image and its mirror image.
        autocast: dtype of the network's arithmetic, as in training with mixed precision; None for that of the
            weights.

    Raises:
        CocosegError: an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float | None = None,
        tile: str | bool | Sequence[int] | None = AUTO,
        flip: bool = False,
        autocast: torch.dtype | None = None,
    ):
        check_prediction(scale, tile)
        self.model = model
        self.resize = InputResize(tuple(model.image_size), scale)
        self.tile = tile
        self.flip = flip
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        weight = next(self.model.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    def __call__(self, image: Tensor) -> Tensor:
        """Predict class indices of images (B, 3, h, w) uint8 RGB: (B, h, w) uint8, on the model's device."""
        return torch.stack(self.masks(self.resize(image), [tuple(image.shape[-2:])] * len(image)))

    @torch.inference_mode()
    def masks(self, image: Tensor, owns: Sequence[Size]) -> list[Tensor]:
        """Predict class indices of a batch: (h, w) uint8 each, on the model's device.

        Args:
            image: (B, 3, H, W) uint8, as `resize` makes it.
            owns: height and width of each of the B images before that.
        """
        tile = self._tile_size(tuple(image.shape[-2:]))
        if tile is not None:
            return [self._mask_of_tiles(one, tile, own) for one, own in zip(image, owns, strict=True)]
        return [enlarged_argmax(one, own) for one, own in zip(self._scores(image), owns, strict=True)]

    def _tile_size(self, size: Size) -> Size | None:
        """Height and width of tiles, or None for an input of this size in one piece."""
        if self.tile is None or self.tile is False:
            return None
        if self.tile == AUTO:
            return choose_tile(size, tuple(self.model.image_size), len(self.model.labels))
        tile = tuple(self.tile)
        return None if tile[0] >= size[0] and tile[1] >= size[1] else tile

    def _mask_of_tiles(self, image: Tensor, tile: Size, own: Size) -> Tensor:
        """Class indices (h, w) uint8 of an image, from tiles of its input, a band of rows at a time.

        Args:
            image: (3, H, W) uint8, the network's input.
            tile: height and width of a tile.
            own: height and width of the image.
        """

        def scores_of(box: Box) -> Tensor:
            top, bottom, left, right = box
            return self._scores(image[None, :, top:bottom, left:right])[0]

        size = tuple(image.shape[-2:])
        rows, columns = (Neighbors.between(old, new, self.device) for old, new in zip(size, own, strict=True))
        parts, done, first = [], 0, 0
        last: Tensor | None = None  # last row of the band above
        for end, band in blend_tiles(scores_of, size, tile):
            band = band if last is None else torch.cat((last, band), 1)
            ready = int((rows.high < end).sum())  # rows of the image that both neighbors are there for
            parts.append(argmax_between(band, rows.slice(done, ready, first), columns))
            done, first, last = ready, end - 1, band[:, -1:]
        return torch.cat(parts)

    def _scores(self, image: Tensor) -> Tensor:
        """Logits of images (B, 3, H, W) uint8, or mean probabilities with `flip`: (B, C, H, W) float32."""
        logits = self._logits(image)
        if not self.flip:
            return logits
        mirrored = self._logits(image.flip(-1)).softmax(1).flip(-1)
        return (logits.softmax(1) + mirrored) / 2

    def _logits(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, C, H, W) float32."""
        image = normalize(image.to(self.device, non_blocking=True))
        if self.autocast is None:
            weight = next(self.model.parameters(), image)
            return self.model(image.to(weight.dtype)).float()
        with torch.autocast(self.device.type, self.autocast):
            return self.model(image).float()
