"""Further transforms of training images, chosen by the user: image by image, in the loader's processes."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchvision import tv_tensors

from cocoseg.cli import build
from cocoseg.config_checks import parameters_of
from cocoseg.data.dataset import Split
from cocoseg.errors import CocosegError, reason_of
from cocoseg.labels import IGNORE_INDEX

TRIALS = 4  # calls on a blank image that show whether a transform fits


class ExtraTransforms:
    """Transforms of image and mask together, as uint8 `tv_tensors`. They must keep shapes and dtypes.

    Args:
        nodes: `_target_` and arguments of each.
        size: (height, width) of the images.

    Raises:
        CocosegError: one can't be built, or fails on a blank image; on a call: one fails.
    """

    def __init__(self, nodes: Sequence[dict[str, Any]], size: tuple[int, int]):
        self.transforms = [(f"augment.extra: {node.get('_target_')}", _build(node)) for node in nodes]
        blank = torch.zeros(TRIALS, 3, *size, dtype=torch.uint8)
        self(blank, blank[:, 0], seeds=[(trial,) for trial in range(TRIALS)])

    def __call__(self, image: Tensor, mask: Tensor, seeds: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Transform image (B, 3, H, W) and mask (B, H, W), uint8, each with random numbers from its seed."""
        with isolate_rng(include_cuda=False):
            pairs = [self._transform(*pair) for pair in zip(image, mask, seeds, strict=True)]
        images, masks = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(masks)

    def _transform(self, image: Tensor, mask: Tensor, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
        number = int(np.random.SeedSequence(seed).generate_state(1)[0])
        for generator in (torch.default_generator.manual_seed, random.seed, np.random.seed):
            generator(number)
        before = [(part.shape, part.dtype) for part in (image, mask)]
        pair = tv_tensors.Image(image), tv_tensors.Mask(mask)
        for name, transform in self.transforms:
            try:
                pair = transform(*pair)
                after = [(part.shape, part.dtype) for part in pair]
            except Exception as error:  # custom code may raise anything
                raise CocosegError(f"{name} fails on uint8 tv_tensors: {reason_of(error)}") from error
            if after != before:
                made = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in after)
                raise CocosegError(f"{name} makes {made} of {tuple(image.shape)}, {tuple(mask.shape)} uint8")
        image, mask = (part.as_subclass(Tensor) for part in pair)
        return image, mask


class TransformedSplit(Split):
    """A split whose images are transformed, each with the seed `(seed, position + len(self) * epoch)`.

    `Shuffle(counts_epochs=True)` yields the second of the two numbers.
    """

    def __init__(self, split: Split, transforms: ExtraTransforms, seed: int):
        super().__init__(split.dataset, range(len(split)))
        self.split, self.transforms, self.seed = split, transforms, seed

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        image, mask, *weight = self.split.__getitems__([number % len(self) for number in numbers])
        return *self.transforms(image, mask, [(self.seed, number) for number in numbers]), *weight


def _build(node: Any) -> Any:
    """Build a transform, and those among its arguments. Torchvision's fill masks with the ignore index."""
    if isinstance(node, list):
        return list(map(_build, node))
    if not isinstance(node, dict):
        return node
    make, target = build({**node, "_partial_": True, "_recursive_": False}, "augment.extra"), node["_target_"]
    arguments = {name: _build(part) for name, part in make.keywords.items()}
    if target.startswith("torchvision.") and "fill" in (known := parameters_of(target, "augment.extra")):
        of_image = arguments.get("fill", known["fill"].default)
        arguments["fill"] = {tv_tensors.Image: of_image, tv_tensors.Mask: IGNORE_INDEX}
    try:
        return make.func(**arguments)
    except Exception as error:  # custom code may raise anything
        raise CocosegError(f"augment.extra: {target}: {reason_of(error)}") from error
