"""Conversion between uint8 images and the network's input; resizing of tensors."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.networks.spec import MEAN, STD


def normalize(image: Tensor) -> Tensor:
    """Convert (…, 3, H, W) uint8 to float32, normalized by ImageNet's statistics, channels last in memory."""
    width = image.shape[-1]
    scale = torch.tensor([1 / (255 * std) for std in STD] * width)
    shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)] * width)
    scale, shift = (values.to(image.device, non_blocking=True) for values in (scale, shift))
    # Whole rows at a time: with channels last, three values would be too few to be vectorized.
    rows = image.movedim(-3, -1).flatten(-2)
    return torch.addcmul(shift, rows.float(), scale).unflatten(-1, (width, 3)).movedim(-1, -3)


def to_tensor(image: PIL.Image.Image) -> Tensor:
    """Convert an RGB image to (3, H, W) uint8, channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_images(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images (B, 3, h, w) uint8 to (height, width): bilinear, with antialiasing.

    On a CPU bit for bit as torchvision, which takes as long to import as torch.
    """
    if image.shape[-2:] == torch.Size(size):
        return image
    if image.device.type == "cpu":
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
    floats = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def resize_masks(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Resize masks (B, h, w) of any dtype to (height, width): each pixel takes the nearest old one."""
    nearest = F.interpolate(mask.unsqueeze(1).float(), size, mode="nearest-exact")
    return nearest.squeeze(1).to(mask.dtype)


def denormalize(image: Tensor) -> np.ndarray:
    """Convert normalized images (B, 3, H, W) float32 to (B, H, W, 3) uint8."""
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    scaled = ((image * std + mean) * 255).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
