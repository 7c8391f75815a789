"""What networks return: logits (B, C, H, W), or a mapping with them as `out`, and with further logits, of any
size, to train on as `aux` (a tensor, or a list from fine to coarse). These are torchvision's names."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

AUX = 0.5  # weight of auxiliary logits in the loss, halved for each of several: see `training_loss`

Output = Tensor | Mapping[str, Any]


def logits_of(output: Output) -> Tensor:
    """The logits that count."""
    return output["out"] if isinstance(output, Mapping) else output


def parts_of(output: Output) -> list[Tensor]:
    """The logits that count, then those to train on beside them."""
    if not isinstance(output, Mapping):
        return [output]
    aux = output.get("aux", [])
    return [output["out"], *(aux if isinstance(aux, list | tuple) else [aux])]


def training_loss(
    loss: Callable[[Tensor, Tensor], Tensor], output: Output, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """What is minimised, and the loss of the logits that count, which compares with that of validation.

    Auxiliary logits add 1/2, 1/4, … of their losses: one kind of them 0.5 as in torchvision's reference
    training, those of deep supervision half of the next finer ones' as in nnU-Net (which then scales the sum
    to weights of 1). The mask is reduced to their size by nearest neighbour.

    Args:
        loss: logits (B, C, H, W) and mask (B, H, W) -> scalar.
        output: of the network in training.
        mask: (B, H, W) int64.
    """
    main, *others = parts_of(output)
    value = loss(main, mask)
    total = value
    for i, logits in enumerate(others, 1):
        total = total + AUX**i * loss(logits, resized(mask, logits.shape[-2:]))
    return total, value


def resized(mask: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Mask (B, H, W) at another (height, width), by nearest neighbour as `torch.nn.functional.interpolate`
    does, which takes no integers."""
    for axis, length in ((1, size[0]), (2, size[1])):
        if mask.shape[axis] != length:
            index = torch.arange(length, device=mask.device) * mask.shape[axis] // length
            mask = mask.index_select(axis, index)
    return mask
