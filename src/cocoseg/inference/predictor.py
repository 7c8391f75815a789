"""Prediction of the class of every pixel, for images of any size, in bounded memory.

The network sees what it was trained on: the image resized to the size of training. Its scores are enlarged
bilinearly to the image's own size, and the highest one wins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.checks import check_prediction
from cocoseg.config import AUTO
from cocoseg.inference.tiling import Box, Size, blend_tiles, choose_tile
from cocoseg.inference.upsampling import Neighbors, argmax_between, enlarged_argmax
from cocoseg.networks.pixels import normalize, resize_images


@dataclass(frozen=True)
class InputResize:
    """Makes the network's inputs of images. Holds no network: goes to other processes.

    Attributes:
        image_size: height and width that every image is resized to.
        scale: factor of the image's own size instead, or None.
        scales: multiples of that size, an input for each.
    """

    image_size: Size
    scale: float | None
    scales: tuple[float, ...]

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Resize images (B, 3, h, w) uint8 RGB: (B, 3, H, W) uint8 for each of `scales`."""
        size = self.size(tuple(image.shape[-2:]))
        return [resize_images(image, _times(size, scale)) for scale in self.scales]

    def size(self, own: Size) -> Size:
        """Height and width of the input at scale 1 for an image of this height and width."""
        return self.image_size if self.scale is None else _times(own, self.scale)

    def pixels(self, own: Size) -> int:
        """Number of pixels of the inputs for an image of this height and width."""
        size = self.size(own)
        return sum(math.prod(_times(size, scale)) for scale in self.scales)


class Predictor:
    """Applies a model to images: resizing, tiles, averaging, arg-max at the image's own size.

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
        scales: averages the probabilities at these multiples of the input's size.
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
        scales: Sequence[float] = (1.0,),
        autocast: torch.dtype | None = None,
    ):
        check_prediction(scale, tile, scales)
        self.model = model
        self.resize = InputResize(tuple(model.image_size), scale, tuple(scales))
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
    def masks(self, inputs: Sequence[Tensor], owns: Sequence[Size]) -> list[Tensor]:
        """Predict class indices of a batch: (h, w) uint8 each, on the model's device.

        Args:
            inputs: (B, 3, H, W) uint8 for each of `scales`, as `resize` makes them.
            owns: height and width of each of the B images; all have the same `resize.size`.
        """
        size = self.resize.size(owns[0])
        if tile := self._tile_size(size):
            images = zip(*(x.split(1) for x in inputs), strict=True)
            return [
                _argmax_of_tiles(self._scores_of_boxes(image, size), size, tile, own, self.device)
                for image, own in zip(images, owns, strict=True)
            ]
        scores = self._scores(inputs, size)
        return [enlarged_argmax(one, own) for one, own in zip(scores, owns, strict=True)]

    def _tile_size(self, size: Size) -> Size | None:
        """Height and width of tiles, or None for an input of this size in one piece."""
        if self.tile is None or self.tile is False:
            return None
        if self.tile == AUTO:
            return choose_tile(size, tuple(self.model.image_size), len(self.model.labels))
        tile = tuple(self.tile)
        return None if tile[0] >= size[0] and tile[1] >= size[1] else tile

    def _scores_of_boxes(self, inputs: Sequence[Tensor], size: Size) -> Callable[[Box], Tensor]:
        """Make the function from a box to its scores (C, bottom - top, right - left).

        Args:
            inputs: (1, 3, H, W) uint8 of one image for each of `scales`.
            size: height and width of the input at scale 1; boxes are in its pixels.
        """

        def scores(box: Box) -> Tensor:
            top, bottom, left, right = box
            parts = []
            for x in inputs:
                y_scale, x_scale = x.shape[-2] / size[0], x.shape[-1] / size[1]
                rows = slice(round(top * y_scale), max(1, round(bottom * y_scale)))
                columns = slice(round(left * x_scale), max(1, round(right * x_scale)))
                parts.append(x[..., rows, columns])
            return self._scores(parts, (bottom - top, right - left))[0]

        return scores

    def _scores(self, inputs: Sequence[Tensor], size: Size) -> Tensor:
        """Logits, or the mean probabilities of several passes: (B, C, *size) float32."""
        if not self.flip and self.resize.scales == (1,):
            return self._logits(inputs[0])
        passes = [(x, mirrored) for x in inputs for mirrored in (False, True)[: 1 + self.flip]]
        total: Tensor | float = 0.0
        for x, mirrored in passes:
            scores = self._logits(x.flip(-1) if mirrored else x).softmax(1)
            scores = scores.flip(-1) if mirrored else scores
            if scores.shape[-2:] != size:
                scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
            total = total + scores / len(passes)
        return total

    def _logits(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, C, H, W) float32."""
        image = normalize(image.to(self.device, non_blocking=True))
        if self.autocast is None:
            weight = next(self.model.parameters(), image)
            return self.model(image.to(weight.dtype)).float()
        with torch.autocast(self.device.type, self.autocast):
            return self.model(image).float()


def _argmax_of_tiles(
    scores_of: Callable[[Box], Tensor], size: Size, tile: Size, own: Size, device: torch.device
) -> Tensor:
    """Class indices (h, w) uint8 of one image, from the scores of its input, a band of rows at a time.

    Args:
        scores_of: gives the scores (C, bottom - top, right - left) of a box of the input.
        size: height and width of the input.
        tile: height and width of a tile.
        own: height and width of the image.
    """
    rows = Neighbors.between(size[0], own[0], device)
    columns = Neighbors.between(size[1], own[1], device)
    parts, done, first = [], 0, 0
    last: Tensor | None = None  # last row of the band above
    for end, band in blend_tiles(scores_of, size, tile):
        band = band if last is None else torch.cat((last, band), 1)
        ready = int((rows.high < end).sum())  # rows of the image that both neighbors are there for
        parts.append(argmax_between(band, rows.slice(done, ready, first), columns))
        done, first, last = ready, end - 1, band[:, -1:]
    return torch.cat(parts)


def _times(size: Size, factor: float) -> Size:
    # At least 2: torch's antialiased resize fails for a single pixel.
    return max(2, round(size[0] * factor)), max(2, round(size[1] * factor))
