"""Cross entropy of enlarged logits, without holding all of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.labels import IGNORE_INDEX
from cocoseg.upsampling import Neighbours

CHUNK = 2**23  # logits at a time


def enlarged_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Sum of the losses of all pixels that are not ignored: scalar float64.

    Args:
        logits: (C, H, W) float32, to be enlarged bilinearly to the size of the mask.
        mask: (h, w) uint8.
    """
    rows, columns = (
        Neighbours.between(old, new, logits.device)
        for old, new in zip(logits.shape[-2:], mask.shape, strict=True)
    )
    pixels = logits.movedim(0, -1)
    height = max(1, CHUNK // (mask.shape[1] * logits.shape[0]))
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for top in range(0, len(mask), height):
        block = rows.part(top, top + height)
        between = torch.lerp(pixels[block.low], pixels[block.high], block.weight[:, None, None])
        enlarged = torch.lerp(between[:, columns.low], between[:, columns.high], columns.weight[:, None])
        target = mask[top : top + height].flatten().long()
        losses = F.cross_entropy(enlarged.flatten(0, 1), target, ignore_index=IGNORE_INDEX, reduction="none")
        total += losses.double().sum()
    return total
