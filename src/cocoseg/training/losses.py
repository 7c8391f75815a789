"""Losses: logits (B, C, H, W) and mask (B, H, W) int64 -> a scalar, ignored pixels left out."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cocoseg.errors import CocosegError, reason_of
from cocoseg.labels import IGNORE_INDEX


class CrossEntropyLoss(nn.Module):
    """`torch.nn.CrossEntropyLoss(ignore_index=255)`, but 0 where every pixel is ignored.

    Torch's own is NaN there, and one such batch (an image that is all crowd) would ruin the weights.

    Args:
        ignore_index: class index that is left out.
        label_smoothing: as in torch.
        class_weights: weight of each class in the mean over pixels; None for 1.
    """

    def __init__(
        self,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        values = logits.float()  # a sum overflows half precision
        if values.stride(1) == 1:  # channels last: a softmax along memory takes half the time
            values, mask = values.movedim(1, -1).flatten(0, 2), mask.flatten()
        # The whole module may have been moved to another precision.
        weights = None if self.class_weights is None else self.class_weights.float()
        # Summed here: over so many pixels torch's own reduction would use a single block of a GPU.
        losses = F.cross_entropy(
            values,
            mask,
            weight=weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        counts = mask != self.ignore_index
        if weights is None:
            return losses.sum() / counts.sum().clamp(min=1)
        total = (weights[mask.masked_fill(~counts, 0)] * counts).sum()
        return losses.sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


class CrossEntropyDiceLoss(CrossEntropyLoss):
    """Cross entropy plus Dice loss, in which all classes count alike, however few pixels they have.

    Dice of a class is 2 sum(p g) / (sum(p) + sum(g)) over all pixels of the batch, with the probability p
    and the target g (Milletari et al. 2016, arXiv 1606.04797). The loss is 1 minus its mean over the classes
    that occur in the batch.

    Args:
        dice: weight of the Dice loss.
        cross_entropy: arguments of `CrossEntropyLoss`.
    """

    def __init__(self, dice: float = 1.0, **cross_entropy: Any):
        super().__init__(**cross_entropy)
        self.dice = dice

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return super().forward(logits, mask) + self.dice * dice_loss(logits, mask, self.ignore_index)


def dice_loss(logits: Tensor, mask: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Dice loss of `CrossEntropyDiceLoss`, a scalar; 0 where every pixel is ignored."""
    classes = logits.shape[1]
    values = logits.float().movedim(1, -1).flatten(0, 2)
    mask = mask.flatten()
    counted = mask != ignore_index
    probability = values.softmax(1) * counted.unsqueeze(1)
    target = mask.masked_fill(~counted, 0)
    is_class = target.unsqueeze(1) == torch.arange(classes, device=values.device)
    shared = (probability * is_class).sum(0)
    true = (is_class & counted.unsqueeze(1)).sum(0)
    dice = 2 * shared / (probability.sum(0) + true).clamp(min=1e-6)
    occurs = (true > 0).float()
    return (occurs * (1 - dice)).sum() / occurs.sum().clamp(min=1)


def try_loss(loss: Callable[[Tensor, Tensor], Tensor], name: str, classes: int) -> None:
    """Call a loss on blank float32 logits and a mask of background, 32 x 32 pixels, on the CPU.

    Raises:
        CocosegError: it fails, or does not return a scalar.
    """
    logits, mask = torch.zeros(2, classes, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    taken = f"logits {tuple(logits.shape)} float32 and mask {tuple(mask.shape)} int64"
    try:
        with torch.random.fork_rng(devices=[]):
            value = loss(logits, mask)
    except Exception as error:  # custom code may raise anything
        raise CocosegError(f"loss: {name} fails on {taken}: {reason_of(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CocosegError(f"loss: {name} returns {found} for {taken}; it must return a scalar")
