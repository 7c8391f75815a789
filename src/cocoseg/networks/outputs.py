"""Outputs of networks: logits (B, C, H, W), or a mapping with them as `out`.

A mapping may hold `aux`, further logits of any size to train on. The names are torchvision's.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from cocoseg.networks.pixels import resize_masks

AUX = 0.5  # weight of auxiliary logits in the loss, as in torchvision's reference training

Output = Tensor | Mapping[str, Tensor]


def logits_of(output: Output) -> Tensor:
    """Return the logits to predict from, without auxiliary ones."""
    return output["out"] if isinstance(output, Mapping) else output


def training_loss(
    loss: Callable[[Tensor, Tensor], Tensor], output: Output, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the loss to minimize, and the one of the main logits, which compares with that of validation.

    Args:
        loss: logits (B, C, H, W) and mask (B, H, W) -> scalar.
        output: what the network returns in training.
        mask: (B, H, W) int64, reduced to the size of auxiliary logits by nearest neighbor.
    """
    value = loss(logits_of(output), mask)
    if not isinstance(output, Mapping) or "aux" not in output:
        return value, value
    aux = output["aux"]
    return value + AUX * loss(aux, resize_masks(mask, aux.shape[-2:])), value
