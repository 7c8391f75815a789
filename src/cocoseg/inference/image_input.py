"""Conversion of an image of any kind to a tensor: a path, a PIL image, an array, a tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from cocoseg.config import FULL_BITS
from cocoseg.errors import CocosegError
from cocoseg.images.image_files import read_image, to_rgb
from cocoseg.images.pixel_depth import to_bytes
from cocoseg.networks.pixels import to_tensor


def as_image_tensor(image: Any, *, upright: bool = True, bits: int | None = None) -> Tensor:
    """Convert anything that `SegmentationModel.predict` takes to (3, H, W) or (B, 3, H, W) uint8 RGB.

    Args:
        upright, bits: see `read_image`; `bits` is for arrays and tensors, too.
    """
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
            raise CocosegError(
                f"a tensor of shape {tuple(image.shape)} is no image; it must be (3, H, W) or (B, 3, H, W)"
            )
        return torch.from_numpy(_as_bytes(image.detach().cpu().numpy(), bits))
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or 0 in image.shape:
            raise CocosegError(f"an array of shape {image.shape} is no image; it must be (H, W, 3) or (H, W)")
        pixels = _as_bytes(image, bits)
        pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
        # Read-only arrays, such as those of PIL images, are copied, because torch warns of them.
        return torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)
    if isinstance(image, str | Path):
        return to_tensor(read_image(Path(image), upright=upright, bits=bits))
    if isinstance(image, PIL.Image.Image):
        try:
            return to_tensor(to_rgb(image, bits))
        except ValueError as error:
            raise CocosegError(f"the image can't be read: {error}") from error
    raise CocosegError(
        f"a {type(image).__name__} is no image; it must be a path, a PIL image, a NumPy array or a tensor"
    )


def _as_bytes(values: np.ndarray, bits: int | None) -> np.ndarray:
    """Convert gray or color values, of uint8, uint16 or floats from 0 to 1, to uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return to_bytes(values, bits or FULL_BITS)
    if not np.issubdtype(values.dtype, np.floating):
        raise CocosegError(
            f"an image of {values.dtype} has no known range; it must be uint8, uint16, or float from 0 to 1"
        )
    if not 0 <= values.min() <= values.max() <= 1:  # NaN ends here too
        raise CocosegError(
            f"an image of floats from {values.min():g} to {values.max():g}; they must lie in 0 … 1"
            " (not normalized: the model does that)"
        )
    return np.rint(values * 255).astype(np.uint8)
