"""Losses: logits (B, C, H, W) and mask (B, H, W) int64 -> a scalar, ignored pixels left out."""

import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.labels import IGNORE_INDEX


class CrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss(ignore_index=255)`, but 0 where every pixel is ignored.

    torch's own is NaN there, and one such batch (a picture that is all crowd) would ruin the weights.

    Args:
        ignore_index: the class index that is left out.
        label_smoothing: as in torch.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX, label_smoothing: float = 0.0):
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        values = logits.float()  # a sum overflows half precision
        counted = (mask != self.ignore_index).sum().clamp(min=1)
        if values.stride(1) == 1:  # channels last: a softmax along memory takes half the time
            values, mask = values.movedim(1, -1).flatten(0, 2), mask.flatten()
        # Summed here: of so many pixels torch's own sum would keep a GPU busy with a single block.
        losses = F.cross_entropy(
            values,
            mask,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return losses.sum() / counted
