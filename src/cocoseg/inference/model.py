"""A trained network with its labels, loaded from a file: `cocoseg.load_model`. No Lightning, no Hydra."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from cocoseg.config import as_pair
from cocoseg.images.exif import upright_by
from cocoseg.inference.image_input import as_image_tensor
from cocoseg.inference.predictor import Predictor
from cocoseg.networks.model_file import load_network
from cocoseg.networks.outputs import logits_of
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec

Image = str | Path | PIL.Image.Image | np.ndarray | Tensor  # what `SegmentationModel.predict` takes


class SegmentationModel(nn.Module):
    """A trained network with its labels, in evaluation mode.

    `forward` maps image (B, 3, H, W) float32, normalized by ImageNet's statistics, to logits (B, C, H, W).

    Attributes:
        net: the network.
        labels: the classes, in the order of the channels.
        image_size: (height, width) in pixels that it was trained at.
        scores: validation scores, or None.
        license: license of the weights that the training began with, as timm names it, or None.
        exif, bits: reading of image files, see `ModelSpec`.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec, scores: dict[str, Any] | None):
        super().__init__()
        self.net, self.scores = net, scores
        self.labels, self.image_size, self.license = spec.labels, spec.image_size, spec.license
        self.exif, self.bits = spec.exif, spec.bits
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.net(image))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def logits(self, image: Tensor, autocast: torch.dtype | None = None) -> Tensor:
        """Logits (B, C, H, W) float32 of images (B, 3, H, W) uint8. For `autocast` see `Predictor`."""
        weight = next(self.parameters())
        image = normalize(image.to(weight.device, non_blocking=True)).to(weight.dtype)
        with torch.autocast(weight.device.type, autocast) if autocast else nullcontext():
            return self(image).float()

    def predict(
        self,
        image: Image | Sequence[Image],
        *,
        scale: float | None = None,
        tile: str | bool | Sequence[int] | None = "auto",
        flip: bool = False,
        probabilities: bool = False,
    ) -> Any:
        """Predict the class of every pixel, on the device and in the precision of the weights.

        Args:
            image: of any size. A path (turned upright by its EXIF orientation, unless `exif` is `ignore`); a
                PIL image of any mode (its pixels as they are); an array (H, W, 3) RGB or (H, W) gray; a
                tensor (3, H, W) or (B, 3, H, W) RGB. Arrays and tensors are uint8 from 0 to 255, uint16 of
                `bits` (None: 16), or floats from 0 to 1, not normalized. Or a list of images of any kinds and
                sizes, which are predicted one after the other.
            scale, tile, flip: see `cocoseg.inference.predictor.Predictor`.
            probabilities: return the probabilities of the classes, too.

        Returns:
            The mask, class indices (H, W) uint8; of a batch (B, H, W). `labels.names[index]` is the name of a
            class, `labels.classes[index].category_id` its category id. With `probabilities` a pair: the mask,
            and probabilities (C, H, W) float16, of a batch (B, C, H, W). Their arg-max over C is the mask.
            For a list, a list of these.

        Raises:
            CocosegError: it is no image, can't be read, or its probabilities would take more than 2 GiB.
        """
        options: dict[str, Any] = {"scale": scale, "tile": tile, "flip": flip}
        if isinstance(image, list | tuple):
            return [self.predict(one, **options, probabilities=probabilities) for one in image]
        pixels = as_image_tensor(image, upright=upright_by(self.exif), bits=self.bits)
        batch = pixels if pixels.ndim == 4 else pixels[None]
        predictor = Predictor(self, **options, probabilities="all" if probabilities else False)
        pending = predictor.masks(predictor.resize(batch), [as_pair(batch.shape[-2:])] * len(batch))
        results = [(one.mask().cpu().numpy(), one.probabilities) for one in pending]
        columns = [[mask for mask, _ in results], [found.by_class for _, found in results if found]]
        arrays = [np.stack(column) if pixels.ndim == 4 else column[0] for column in columns if column]
        return tuple(arrays) if probabilities else arrays[0]


def load_model(path: str | Path, net: nn.Module | type[nn.Module] | str | None = None) -> SegmentationModel:
    """Load `segmentation_model.pth` or a checkpoint as a network in evaluation mode, on the CPU.

    Args:
        path: the file.
        net: a custom network to load the weights into, its class, or the class's name; see `load_network`.

    Raises:
        CocosegError: the file can't be loaded, or names a network that must be passed as `net`.
    """
    return SegmentationModel(*load_network(path, net))
