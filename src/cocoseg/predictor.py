"""The class of every pixel of images of any size, in bounded memory. No Hydra, no Lightning, no files.

The network sees what it was trained on: the image resized to the size of training. Its scores are enlarged
bilinearly to the image's own size, and the highest one wins.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.checks import check_prediction
from cocoseg.config import AUTO
from cocoseg.errors import CocosegError
from cocoseg.images import read_upright, to_rgb
from cocoseg.pixels import normalize, resized, to_tensor
from cocoseg.tiling import STEP, Box, Size, blend_tiles
from cocoseg.upsampling import Neighbours, argmax_between, enlarged_argmax

LARGEST_INPUT = 2**20  # pixels that the network is given in one piece where `tile` is auto
TILE = 768  # pixels: side of a tile, where the number of classes leaves room for it
LEAST_TILE = 256
BAND_BYTES = 2**29  # of the scores of a row of tiles


class Predictor:
    """A model with the way that it is applied to images.

    Args:
        model: image (B, 3, H, W) float32, normalised -> logits (B, C, H, W), with the attributes `image_size`
            and `labels` of a SegmentationModel. It runs on the device and in the precision of its weights.
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
        self.scale = scale
        self.tile = tile
        self.flip = flip
        self.scales = tuple(scales)
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        weight = next(self.model.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    def __call__(self, image: Tensor) -> Tensor:
        """Class indices at the images' own size.

        Args:
            image: (B, 3, h, w) uint8 RGB, on any device.

        Returns:
            (B, h, w) uint8, on the model's device.
        """
        return torch.stack(self.masks(self.inputs(image), [tuple(image.shape[-2:])] * len(image)))

    def input_size(self, own: Size) -> Size:
        """Height and width of the network's input for an image of this height and width."""
        return tuple(self.model.image_size) if self.scale is None else _times(own, self.scale)

    def input_pixels(self, own: Size) -> int:
        """How many pixels `inputs` makes of an image of this height and width."""
        size = self.input_size(own)
        return sum(math.prod(_times(size, scale)) for scale in self.scales)

    def inputs(self, image: Tensor) -> list[Tensor]:
        """What the network is to see, at each of `scales`. Needs no network: other threads can do it.

        Args:
            image: (B, 3, h, w) uint8 RGB.

        Returns:
            (B, 3, H, W) uint8 each; H and W are the same for all images where `scale` is None.
        """
        size = self.input_size(tuple(image.shape[-2:]))
        return [resized(image, _times(size, scale)) for scale in self.scales]

    @torch.inference_mode()
    def masks(self, inputs: Sequence[Tensor], owns: Sequence[Size]) -> list[Tensor]:
        """Class indices of a batch that `inputs` made, (h, w) uint8 each, on the model's device.

        Args:
            inputs: (B, 3, H, W) uint8 for each of `scales`.
            owns: height and width of each of the B images themselves; their `input_size` is the same.
        """
        size = self.input_size(owns[0])
        if tile := self._tile_size(size):
            return [self._tiled(_one(inputs, i), size, tile, own) for i, own in enumerate(owns)]
        scores = self._scores(inputs, size)
        return [enlarged_argmax(one, own) for one, own in zip(scores, owns, strict=True)]

    @torch.inference_mode()
    def scores(self, image: Tensor) -> Tensor:
        """Logits at the images' own size; mean probabilities where `flip` or `scales` ask for several passes.

        Their arg-max is what a call returns. Memory is not bounded here: 4 bytes per class and pixel.

        Args:
            image: (B, 3, h, w) uint8 RGB, on any device.

        Returns:
            (B, C, h, w) float32, on the model's device.
        """
        inputs, own = self.inputs(image), tuple(image.shape[-2:])
        size = self.input_size(own)
        if tile := self._tile_size(size):
            parts = (self._part(_one(inputs, i), size) for i in range(len(image)))
            scores = torch.stack(
                [torch.cat([band for _, band in blend_tiles(part, size, tile)], 1) for part in parts]
            )
        else:
            scores = self._scores(inputs, size)
        return F.interpolate(scores, size=own, mode="bilinear", align_corners=False)

    def _tile_size(self, size: Size) -> Size | None:
        """Height and width of tiles, or None for an input of this size in one piece."""
        if self.tile is None or self.tile is False:
            return None
        if self.tile != AUTO:
            tile = tuple(self.tile)
        elif math.prod(size) <= max(LARGEST_INPUT, math.prod(self.model.image_size)):
            return None
        else:  # the scores of a row of tiles take 2 bytes each
            room = BAND_BYTES // (2 * len(self.model.labels) * size[1]) // STEP * STEP
            tile = (max(LEAST_TILE, min(TILE, room)),) * 2
        return None if tile[0] >= size[0] and tile[1] >= size[1] else tile

    def _tiled(self, inputs: Sequence[Tensor], size: Size, tile: Size, own: Size) -> Tensor:
        """Class indices (h, w) of one image, band by band."""
        rows = Neighbours.between(size[0], own[0], self.device)
        columns = Neighbours.between(size[1], own[1], self.device)
        parts, done, first = [], 0, 0
        last: Tensor | None = None  # row of the band before
        for end, band in blend_tiles(self._part(inputs, size), size, tile):
            band = band if last is None else torch.cat((last, band), 1)
            ready = int((rows.high < end).sum())  # of the image's rows, those that lie between rows at hand
            parts.append(argmax_between(band, rows.part(done, ready, first), columns))
            done, first, last = ready, end - 1, band[:, -1:]
        return torch.cat(parts)

    def _part(self, inputs: Sequence[Tensor], size: Size) -> Callable[[Box], Tensor]:
        """Scores of parts of one image's input, whose size at scale 1 is given."""

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
        """Logits, or mean probabilities: (B, C, *size) float32."""
        if not self.flip and self.scales == (1,):
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


def predict(
    model: nn.Module,
    image: Any,
    *,
    scale: float | None = None,
    tile: str | bool | Sequence[int] | None = AUTO,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> np.ndarray:
    """The class of every pixel, see `SegmentationModel.predict`."""
    pixels = as_pixels(image)
    predictor = Predictor(model, scale=scale, tile=tile, flip=flip, scales=scales)
    mask = predictor(pixels if pixels.ndim == 4 else pixels[None]).cpu().numpy()
    return mask if pixels.ndim == 4 else mask[0]


def as_pixels(image: Any) -> Tensor:
    """Any image that `SegmentationModel.predict` takes, as (3, H, W) or (B, 3, H, W) uint8 RGB.

    Raises:
        CocosegError: it is no image, or its values have no known range.
    """
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
            raise CocosegError(
                f"a tensor of shape {tuple(image.shape)} is no image; it must be (3, H, W) or (B, 3, H, W)"
            )
        return torch.from_numpy(_as_bytes(image.detach().cpu().numpy()))
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
            raise CocosegError(f"an array of shape {image.shape} is no image; it must be (H, W, 3) or (H, W)")
        pixels = _as_bytes(image)
        pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if isinstance(image, str | Path):
        return to_tensor(read_upright(Path(image)))
    if isinstance(image, PIL.Image.Image):
        return to_tensor(to_rgb(image))
    raise CocosegError(
        f"a {type(image).__name__} is no image; it must be a path, a PIL image, a NumPy array or a tensor"
    )


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Grey or colour values of a known range as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise CocosegError(
            f"an image of {values.dtype} has no known range; it must be uint8, uint16, or float from 0 to 1"
        )
    if not 0 <= values.min() <= values.max() <= 1:  # not numbers end here, too
        raise CocosegError(
            f"an image of floats from {values.min():g} to {values.max():g}; they must lie in 0 … 1"
            " (not normalised: the model does that)"
        )
    return np.rint(values * 255).astype(np.uint8)


def _one(inputs: Sequence[Tensor], number: int) -> list[Tensor]:
    return [x[number : number + 1] for x in inputs]


def _times(size: Size, factor: float) -> Size:
    # Not below 2: to a single pixel torch's resize fails.
    return max(2, round(size[0] * factor)), max(2, round(size[1] * factor))
