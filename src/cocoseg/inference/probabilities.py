"""Probabilities of the classes at an image's own size, computed from enlarged scores, some rows at a time."""

import numpy as np
import torch
from torch import Tensor

from cocoseg.errors import CocosegError
from cocoseg.inference.tiling import Size
from cocoseg.inference.upsampling import Neighbors, interpolate_rows, neighbors

SAMPLED = 2**19  # most probabilities of an image that `confidences` computes
LIMIT = 2**31  # most bytes of the probabilities of all classes of an image


class Probabilities:
    """Probabilities of an image, filled in part by part. Their arg-max is the mask.

    Args:
        size: height and width of the image.
        classes: number of classes C.
        keeps_all: keep the probabilities of all classes.
        from_logits: True if scores are logits, False if they are probabilities already.

    Attributes:
        confidence: (h, w) uint8, 255 times the probability of the class in the mask, rounded.
        by_class: probabilities of all classes (C, h, w) float16; (0, h, w) without `keeps_all`.

    Raises:
        CocosegError: the probabilities of all classes would take more than LIMIT.
    """

    def __init__(self, size: Size, classes: int, *, keeps_all: bool, from_logits: bool):
        self.from_logits = from_logits
        self.confidence = np.empty(size, np.uint8)
        if keeps_all:
            require_room(size, classes)
        self.by_class = np.empty((classes if keeps_all else 0, *size), np.float16)

    @property
    def nbytes(self) -> int:
        return self.confidence.nbytes + self.by_class.nbytes

    def fill(
        self, scores: Tensor, rows: Neighbors, columns: Neighbors, mask: Tensor, top: int = 0, left: int = 0
    ) -> None:
        """Fill in a part of the image.

        Args:
            scores: (C, H, W) float32.
            rows, columns: neighbors in the scores of each of the part's h rows and w columns.
            mask: (h, w) uint8, class indices of the part.
            top, left: first row and column of the part.
        """
        for block in interpolate_rows(scores, rows, columns):
            winner, mask = mask[: len(block)], mask[len(block) :]
            block = block.softmax(-1) if self.from_logits else block
            place = slice(top, top + len(block)), slice(left, left + block.shape[1])
            self.confidence[place] = (255 * _chosen(block, winner)).round().to(torch.uint8).cpu().numpy()
            if len(self.by_class):
                self.by_class[:, *place] = _as_half(block, winner).transpose(2, 0, 1)
            top += len(block)


def confidences(logits: Tensor, mask: Tensor) -> tuple[Tensor, slice]:
    """Compute the probability of the class in a mask, on as many evenly spread rows as SAMPLED allows.

    Args:
        logits: (C, H, W) float32.
        mask: (h, w) uint8.

    Returns:
        Probabilities (n, w) float32, and a slice that gives their rows in the mask.
    """
    step = min(len(mask), -(-len(logits) * mask.numel() // SAMPLED))
    chosen = slice(step // 2, None, step)
    rows, columns = neighbors(logits.shape[-2:], mask.shape, logits.device)
    above, below = (logits.movedim(0, -1).index_select(0, side[chosen]) for side in (rows.low, rows.high))
    lines = torch.lerp(above, below, rows.weight[chosen, None, None])
    left, right = (lines.index_select(1, side) for side in (columns.low, columns.high))
    found = torch.lerp(left, right, columns.weight[:, None])
    winner = _chosen(found, mask[chosen].to(logits.device))
    return 1 / (found - winner[..., None]).exp_().sum(-1), chosen


def require_room(size: Size, classes: int, prefix: str = "") -> None:
    """Raise CocosegError where the probabilities of all classes of an image would take more than LIMIT."""
    total = 2 * classes * size[0] * size[1]
    if total > LIMIT:
        raise CocosegError(
            f"{prefix}probabilities of {classes} classes for {size[1]}x{size[0]} pixels would take "
            f"{total / 1e9:.1f} GB, more than {LIMIT / 1e9:.1f}; predict.py probabilities=true writes the "
            "confidence alone"
        )


def _chosen(values: Tensor, winner: Tensor) -> Tensor:
    """Select from values (h, w, C) that of the class in the mask (h, w): (h, w)."""
    return values.gather(-1, winner.long().unsqueeze(-1)).squeeze(-1)


def _as_half(values: Tensor, winner: Tensor) -> np.ndarray:
    """Round probabilities (h, w, C) to float16 so that the class in the mask (h, w) keeps the highest one."""
    half = values.half()
    winners = winner.cpu().numpy()
    is_lost = half.float().argmax(-1).to(torch.uint8).cpu().numpy() != winners
    result = half.cpu().numpy()
    y, x = is_lost.nonzero()
    result[y, x, winners[y, x]] = np.nextafter(result[y, x].max(-1), np.float16(2))
    return result
