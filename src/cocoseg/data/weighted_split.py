"""Training images of several prepared sets, each set with a weight of its own in the loss."""

from collections import defaultdict
from collections.abc import Sequence
from filecmp import cmp
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cocoseg.data.dataset import Split
from cocoseg.data.training_images import Key
from cocoseg.errors import CocosegError


class WeightedSplit(Split):
    """Splits one after the other, of images of the same size.

    A batch is image, mask and weight (B,) float32; where all weights are 1, image and mask. `dataset` and
    `indices` are those of the first split.

    Args:
        weights: weight of the images of each split.
    """

    def __init__(self, parts: Sequence[Split], weights: Sequence[float]):
        super().__init__(parts[0].dataset, parts[0].indices)
        self.parts = parts
        sizes = list(map(len, parts))
        self.ends = np.cumsum(sizes)
        self.weights = None if set(weights) == {1} else np.repeat(np.asarray(weights, np.float32), sizes)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        part = int(np.searchsorted(self.ends, position, "right"))
        return self.parts[part][position - int(self.ends[part]) + len(self.parts[part])]

    def __getitems__(self, positions: Sequence[int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        wanted = np.asarray(positions)
        owner = np.searchsorted(self.ends, wanted, "right")
        images = np.empty((len(wanted), *self.dataset.image_size, 3), np.uint8)
        masks = np.empty(images.shape[:3], np.uint8)
        for number in np.unique(owner):
            part, rows = self.parts[number], owner == number
            image, mask = part.__getitems__((wanted[rows] - self.ends[number] + len(part)).tolist())
            images[rows], masks[rows] = image.permute(0, 2, 3, 1).numpy(), mask.numpy()
        batch = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks)
        return batch if self.weights is None else (*batch, torch.from_numpy(self.weights[wanted]))

    def class_counts(self) -> np.ndarray:
        """Pixels per class in each mask times the weight of the image: (N, C) float64; int32 if all are 1."""
        counts = np.concatenate([part.class_counts() for part in self.parts])
        return counts if self.weights is None else counts * self.weights[:, None]

    def names(self) -> list[str]:
        return [name for part in self.parts for name in part.names()]

    def image_keys(self) -> list[Key]:
        return [key for part in self.parts for key in part.image_keys()]


def require_held_out(val: Split, extra: Split, annotations: Path) -> None:
    """Raise CocosegError where images of `data.extra`, which `annotations` lists, are validation images.

    Two images are the same if they are one file, if path below the folder and number of bytes agree (as in
    evaluate.py), or if one is a copy of the other of the same file name.
    """
    alike: dict[Key, list[str]] = defaultdict(list)
    for name, size in val.image_keys():
        alike[Path(name).name, size].append(name)
    val_dir, extra_dir = val.dataset.image_dir, extra.dataset.image_dir
    val_paths = {(val_dir / name).resolve() for name in val.names()}

    def is_known(name: str, size: int) -> bool:
        path = extra_dir / name
        others = alike.get((Path(name).name, size), [])
        return path.resolve() in val_paths or any(
            n == name or cmp(path, val_dir / n, shallow=False) for n in others
        )

    if known := [name for name, size in extra.image_keys() if is_known(name, size)]:
        raise CocosegError(
            f"data.extra: {len(known)} of the {len(extra)} images of {annotations} are validation images of "
            f"this run, {known[0]} for one; leave them out of that file"
        )
