"""Outputs of networks: logits (B, C, H, W), or a mapping with them as `out`.

A mapping may hold `aux`, further logits of any size to train on: a tensor, or a list from fine to coarse. The
names are torchvision's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from cocoseg.networks.pixels import resize_masks

AUX = 0.5  # weight of auxiliary logits in the loss; of several each counts half of the one before

Output = Tensor | Mapping[str, Any]


def logits_of(output: Output) -> Tensor:
    """Return the logits to predict from, without auxiliary ones."""
    return output["out"] if isinstance(output, Mapping) else output


def training_loss(
    loss: Callable[[Tensor, Tensor], Tensor], output: Output, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the loss to minimize, and the one of the main logits, which compares with that of validation.

    Auxiliary logits add 1/2, 1/4, … of their losses: one kind of them 0.5, as in torchvision's reference
    training. The mask is reduced to their size by nearest neighbor.

    Args:
        loss: logits (B, C, H, W) and mask (B, H, W) -> scalar.
        output: what the network returns in training.
        mask: (B, H, W) int64.
    """
    value = loss(logits_of(output), mask)
    total = value
    aux = output.get("aux", []) if isinstance(output, Mapping) else []
    for i, logits in enumerate(aux if isinstance(aux, list | tuple) else [aux], 1):
        total = total + AUX**i * loss(logits, resize_masks(mask, logits.shape[-2:]))
    return total, value
