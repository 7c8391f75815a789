"""The arg-max of bilinearly enlarged scores, without enlarging most of them.

A new pixel is interpolated from four old ones. If one class has the highest score at all four, the weighted
mean of its scores is the highest, too. So only new pixels along the borders of classes are interpolated, some
at a time. The result is that of `F.interpolate(…, mode="bilinear", align_corners=False).argmax`, which needs
4 bytes per class and pixel: 15 GB for 8000x6000 pixels and 81 classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

BLOCK = 2**20  # pixels of the result that are computed at a time
CHUNK = 2**20  # scores that are interpolated at a time; more would not fit into a CPU's cache


@dataclass(frozen=True)
class Neighbors:
    """The two old pixels of a row or column that each new pixel is interpolated from.

    Attributes:
        low, high: (n,) int64, indices of the old pixels.
        weight: (n,) float32, weight of `high`; `low` has weight 1 - weight.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def between(cls, old: int, new: int, device: torch.device) -> Self:
        """Neighbors for a resize from `old` to `new` pixels, sampled at pixel centers."""
        position = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
        position = position.clamp(0, old - 1)
        low = position.long()
        high = (low + 1).clamp(max=old - 1)
        return cls(low.to(device), high.to(device), (position - low).float().to(device))

    def within(self, first: int, last: int) -> list[int]:
        """Find the new pixels whose `low` is in `first` … `last` - 1, as start and stop (not included)."""
        return torch.searchsorted(self.low, self.low.new_tensor([first, last])).tolist()

    def slice(self, start: int, stop: int, first: int = 0) -> "Neighbors":
        """Neighbors of the new pixels `start` … `stop` - 1; old pixels are counted from `first`."""
        return Neighbors(self.low[start:stop] - first, self.high[start:stop] - first, self.weight[start:stop])


def neighbors(old: Sequence[int], new: Sequence[int], device: torch.device) -> tuple[Neighbors, Neighbors]:
    """Neighbors of the rows and of the columns, for a resize between two (height, width)."""
    return Neighbors.between(old[0], new[0], device), Neighbors.between(old[1], new[1], device)


@torch.inference_mode()
def enlarged_argmax(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Arg-max (h, w) uint8 of scores (C, H, W) float32, C ≤ 256, enlarged to a size (h, w)."""
    return argmax_between(scores, *neighbors(scores.shape[-2:], size, scores.device))


def interpolate_rows(scores: Tensor, rows: Neighbors, columns: Neighbors) -> Iterator[Tensor]:
    """Interpolate scores (C, H, W) float32 at h rows and w columns: (n, w, C), n of the rows at a time."""
    pixels = scores.movedim(0, -1)
    height = max(1, CHUNK // (len(columns.low) * pixels.shape[-1]))
    for top in range(0, len(rows.low), height):
        first, last = int(rows.low[top]), int(rows.high[top : top + height][-1])
        block, near = rows.slice(top, top + height, first), pixels[first : last + 1]
        left, right = (near.index_select(1, side) for side in (columns.low, columns.high))
        near = torch.lerp(left, right, columns.weight[:, None])
        above, below = (near.index_select(0, side) for side in (block.low, block.high))
        yield torch.lerp(above, below, block.weight[:, None, None])


def argmax_between(scores: Tensor, rows: Neighbors, columns: Neighbors) -> Tensor:
    """Arg-max (h, w) uint8 of scores (C, H, W) float32, interpolated at h rows and w columns."""
    pixels = scores.movedim(0, -1).contiguous()  # channels-last scores are not copied
    winner = _argmax(pixels)
    mixed = _is_mixed(winner)
    height = max(1, BLOCK // len(columns.low))
    blocks = [rows.slice(top, top + height) for top in range(0, len(rows.low), height)]
    return torch.cat([_block(pixels, winner, mixed, block, columns) for block in blocks])


def _is_mixed(winner: Tensor) -> Tensor:
    """Find pixels that differ from their right, lower or lower right neighbor: (H, W) bool."""
    right, below = (
        torch.arange(1, length + 1, device=winner.device).clamp(max=length - 1)
        for length in reversed(winner.shape)
    )
    mixed = winner != winner[:, right]
    return mixed | mixed[below] | (winner != winner[below])


def _block(pixels: Tensor, winner: Tensor, mixed: Tensor, rows: Neighbors, columns: Neighbors) -> Tensor:
    """Compute some rows of `argmax_between` from scores (H, W, C), their arg-max and `_is_mixed` of that."""
    # index_select is several times as fast as indexing with tensors.
    result, unclear = (old.index_select(1, columns.low).index_select(0, rows.low) for old in (winner, mixed))
    width, old_width = len(columns.low), pixels.shape[1]
    pixels = pixels.flatten(0, 1)
    for positions in unclear.flatten().nonzero()[:, 0].split(max(1, CHUNK // pixels.shape[1])):
        y, x = positions // width, positions % width
        left, right = columns.low[x], columns.high[x]
        weight = columns.weight[x, None]
        above, below = (
            torch.lerp(pixels.index_select(0, row + left), pixels.index_select(0, row + right), weight)
            for row in (rows.low[y] * old_width, rows.high[y] * old_width)
        )
        result.view(-1)[positions] = _argmax(torch.lerp(above, below, rows.weight[y, None]))
    return result


def _argmax(scores: Tensor) -> Tensor:
    """Arg-max over the last dimension, as uint8. On a CPU NumPy's is several times as fast as torch's."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(-1).astype("uint8"))
    return scores.argmax(-1).to(torch.uint8)
