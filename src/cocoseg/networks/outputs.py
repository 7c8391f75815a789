"""Outputs of networks: logits (B, C, H, W), or a mapping with them as `out`.

A mapping may hold `aux`, further logits of any size to train on. The names are torchvision's.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cocoseg.networks.pixels import resize_masks

AUX = 0.5  # weight of auxiliary logits in the loss, as in torchvision's reference training

Output = Tensor | Mapping[str, Tensor]


def logits_of(output: Output) -> Tensor:
    """Return the logits to predict from, without auxiliary ones."""
    return output["out"] if isinstance(output, Mapping) else output


def training_loss(
    loss: Callable[[Tensor, Tensor], Tensor], output: Output, mask: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the loss to minimize, and the one of the main logits, which compares with that of validation.

    With weights, the batch is divided into groups of images of equal weight, and the loss to minimize is the
    sum of share of the images x weight x loss over the groups. The other loss leaves the weights out.

    Args:
        loss: logits (B, C, H, W) and mask (B, H, W) -> scalar.
        output: what the network returns in training.
        mask: (B, H, W) int64, reduced to the size of auxiliary logits by nearest neighbor.
        weight: (B,) of each image; None for 1.
    """
    if weight is not None:
        return _weighted_loss(loss, output, mask, weight)
    value = loss(logits_of(output), mask)
    if not isinstance(output, Mapping) or "aux" not in output:
        return value, value
    aux = output["aux"]
    return value + AUX * loss(aux, resize_masks(mask, aux.shape[-2:])), value


def _weighted_loss(
    loss: Callable[[Tensor, Tensor], Tensor], output: Output, mask: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses of `training_loss`, with weights."""
    outputs = output if isinstance(output, Mapping) else {"out": output}
    groups: dict[float, list[int]] = {}
    for image, factor in enumerate(weight.tolist()):
        groups.setdefault(factor, []).append(image)
    totals, values = [], []
    for factor, images in groups.items():
        rows = torch.tensor(images).to(mask.device, non_blocking=True)
        part = {name: outputs[name][rows] for name in ("out", "aux") if name in outputs}
        total, value = training_loss(loss, part, mask[rows])
        share = len(images) / len(mask)
        totals.append(share * factor * total)
        values.append(share * value)
    return torch.stack(totals).sum(), torch.stack(values).sum()
