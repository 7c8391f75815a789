"""Prediction of the class of every pixel, for images of any size, in bounded memory.

The network sees the image at the size of its training. Its scores are enlarged bilinearly to the image's own
size, and the highest one wins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cocoseg.config import AUTO, as_pair
from cocoseg.config_cross_checks import check_prediction
from cocoseg.inference.probabilities import Probabilities
from cocoseg.inference.tiling import Size, choose_tile, spans
from cocoseg.inference.upsampling import argmax_between, neighbors
from cocoseg.networks.pixels import resize_images


@dataclass(frozen=True)
class InputResize:
    """Resizes images to the network's input. It holds no network, so that it can be sent to other processes.

    Attributes:
        image_size: height and width of the input, unless `scale` is given.
        scale: size of the input as a factor of the image's own size, or None.
    """

    image_size: Size
    scale: float | None

    def __call__(self, image: Tensor) -> Tensor:
        """Resize images (B, 3, h, w) uint8 RGB: (B, 3, H, W) uint8."""
        return resize_images(image, self.size(as_pair(image.shape[-2:])))

    def size(self, original: Size) -> Size:
        """Height and width of the input, for an image of this height and width."""
        if self.scale is None:
            return self.image_size
        # At least 2: torch's antialiased resize fails for a single pixel.
        return max(2, round(original[0] * self.scale)), max(2, round(original[1] * self.scale))


class Pending(NamedTuple):
    """A prediction: class indices (h, w) uint8, or scores from which `mask` computes them.

    Attributes:
        tensor: the mask, or scores (C, H, W) float32.
        size: height and width of the mask to compute; None if `tensor` is the mask.
        probabilities: of the same image, filled in with the mask; None where they are not wanted.
    """

    tensor: Tensor
    size: Size | None = None
    probabilities: Probabilities | None = None

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes + (self.probabilities.nbytes if self.probabilities else 0)

    @torch.inference_mode()
    def mask(self) -> Tensor:
        """Return the mask, computed from the scores if need be."""
        if self.size is None:
            return self.tensor
        near = neighbors(self.tensor.shape[-2:], self.size, self.tensor.device)
        mask = argmax_between(self.tensor, *near)
        if self.probabilities is not None:
            self.probabilities.fill(self.tensor, *near, mask)
        return mask


class Predictor:
    """Applies a model to images: resizing, tiles, the mirror image, arg-max at the image's own size.

    Args:
        model: a `SegmentationModel`, with the device and precision of its weights; or an `OnnxModel`.
        scale: None resizes every image to the model's `image_size`, as in training. A number resizes it to
            its own size times this number, for images much larger than those of training (satellite,
            microscopy).
        tile: `auto` cuts inputs of more than a million pixels (or more than `image_size` has) into
            overlapping tiles, each of which decides its middle. (height, width) is the size of tiles in
            pixels of the input. False or None never cuts.
        flip: averages the probabilities of the image and its mirror image.
        autocast: dtype of the network's arithmetic, as in training with mixed precision; None for that of the
            weights.
        probabilities: fill in `Pending.probabilities`: True the confidence alone, `all` those of all classes.

    Raises:
        CocosegError: an argument is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        scale: float | None = None,
        tile: str | bool | Sequence[int] | None = AUTO,
        flip: bool = False,
        autocast: torch.dtype | None = None,
        probabilities: Literal["all"] | bool = False,
    ):
        check_prediction(scale, tile)
        self.model = model
        self.resize = InputResize(as_pair(model.image_size), scale)
        self.tile, self.flip = tile, flip
        self.autocast, self.probabilities = autocast, probabilities

    def __call__(self, image: Tensor) -> Tensor:
        """Predict class indices of images (B, 3, h, w) uint8 RGB: (B, h, w) uint8, on the model's device."""
        pending = self.masks(self.resize(image), [as_pair(image.shape[-2:])] * len(image))
        return torch.stack([one.mask() for one in pending])

    @torch.inference_mode()
    def masks(self, image: Tensor, sizes: Sequence[Size]) -> Iterator[Pending]:
        """Predict a batch.

        Args:
            image: (B, 3, H, W) uint8, as `resize` returns it.
            sizes: own height and width of each of the B images.

        Yields:
            The predictions, on the model's device. On a CPU they hold scores, so that other threads compute
            the masks.

        Raises:
            CocosegError: there are too many probabilities, see `Probabilities`.
        """
        tile = self._tile_size(as_pair(image.shape[-2:]))
        if tile is not None:
            yield from (self._predict_tiles(one, tile, size) for one, size in zip(image, sizes, strict=True))
            return
        for scores, size in zip(self._scores(image), sizes, strict=True):
            pending = Pending(scores, size, self._probabilities(size))
            if self.model.device.type != "cpu":  # scores would wait in the GPU's memory
                pending = Pending(pending.mask(), None, pending.probabilities)
            yield pending

    def _probabilities(self, size: Size) -> Probabilities | None:
        """Make the probabilities to fill in, of an image of this height and width, if they are wanted."""
        if not self.probabilities:
            return None
        keeps_all = self.probabilities == "all"
        return Probabilities(size, len(self.model.labels), keeps_all=keeps_all, from_logits=not self.flip)

    def _tile_size(self, size: Size) -> Size | None:
        """Choose height and width of tiles; None leaves an input of this size in one piece."""
        if self.tile is None or isinstance(self.tile, bool):
            return None
        if isinstance(self.tile, str):
            return choose_tile(size, as_pair(self.model.image_size))
        tile = as_pair(self.tile)
        return None if tile[0] >= size[0] and tile[1] >= size[1] else tile

    def _predict_tiles(self, image: Tensor, tile: Size, size: Size) -> Pending:
        """Predict an image from tiles of its input.

        Args:
            image: (3, H, W) uint8, the network's input.
            tile: height and width of a tile.
            size: height and width of the mask.
        """
        mask = torch.empty(size, dtype=torch.uint8, device=self.model.device)
        probabilities = self._probabilities(size)
        rows, columns = neighbors(image.shape[-2:], size, self.model.device)
        for y, x in product(spans(image.shape[-2], tile[0]), spans(image.shape[-1], tile[1])):
            top, bottom = rows.within(y.first, y.last)
            left, right = columns.within(x.first, x.last)
            if top < bottom and left < right:
                scores = self._scores(image[None, :, y.start : y.stop, x.start : x.stop])[0]
                near = rows.slice(top, bottom, y.start), columns.slice(left, right, x.start)
                part = mask[top:bottom, left:right] = argmax_between(scores, *near)
                if probabilities is not None:
                    probabilities.fill(scores, *near, part, top, left)
        return Pending(mask, None, probabilities)

    def _scores(self, image: Tensor) -> Tensor:
        """Logits of images (B, 3, H, W) uint8, or mean probabilities with `flip`: (B, C, H, W) float32."""
        logits = self.model.logits(image, self.autocast)
        if not self.flip:
            return logits
        mirrored = self.model.logits(image.flip(-1), self.autocast).softmax(1).flip(-1)
        return (logits.softmax(1) + mirrored) / 2
