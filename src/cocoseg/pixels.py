"""Bytes to what the network takes, and back."""

import numpy as np
import torch
from torch import Tensor

from cocoseg.spec import MEAN, STD


def normalised(image: Tensor) -> Tensor:
    """(…, 3, H, W) uint8 -> float32 of mean 0 and standard deviation 1 over ImageNet; strides are kept."""
    scale = torch.tensor([1 / (255 * std) for std in STD]).to(image.device, non_blocking=True)
    shift = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])
    shift = shift.to(image.device, non_blocking=True)
    return torch.addcmul(shift.view(3, 1, 1), image.float(), scale.view(3, 1, 1))


def denormalised(image: Tensor) -> np.ndarray:
    """Normalised (B, 3, H, W) float32 -> (B, H, W, 3) uint8."""
    mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    scaled = ((image * std + mean) * 255).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
