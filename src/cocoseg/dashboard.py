"""What TensorBoard is shown, and the picture sheet of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import PIL.Image
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from cocoseg.files import whole_file
from cocoseg.labels import IGNORE_INDEX, LabelMap
from cocoseg.module import SegmentationModule
from cocoseg.outputs import logits_of
from cocoseg.pixels import denormalised

EXAMPLES = 8  # images on a sheet
GAP = 4  # pixels between pictures
IGNORED = (128, 128, 128)


class ExampleSheet(L.Callback):
    """Logs the first validation images as image | truth | prediction after each validation."""

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: SegmentationModule,
        outputs: Tensor,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.sanity_checking or not isinstance(pl_module.logger, TensorBoardLogger):
            return
        image, mask = batch
        picture = sheet(image[:EXAMPLES], mask[:EXAMPLES], outputs[:EXAMPLES], pl_module.spec.labels)
        writer = pl_module.logger.experiment
        writer.add_image("val/examples", picture, pl_module.global_step, dataformats="HWC")


def sheet(image: Tensor, mask: Tensor, prediction: Tensor, labels: LabelMap) -> np.ndarray:
    """One row per example: image | truth | prediction, in the colours of the labels, ignored pixels grey.

    Args:
        image: (B, 3, H, W) float32, normalised.
        mask, prediction: (B, H, W) int64 class indices.

    Returns:
        (B·(H+4)-4, 3·(W+4)-4, 3) uint8 RGB.
    """
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(labels)] = [label.color for label in labels.classes]
    palette[IGNORE_INDEX] = IGNORED
    rows = []
    for photo, truth, guess in zip(
        denormalised(image), mask.cpu().numpy(), prediction.cpu().numpy(), strict=True
    ):
        rows.append(_joined([photo, palette[truth], palette[guess]], axis=1))
    return _joined(rows, axis=0)


def write_sheet(
    path: Path, net: torch.nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], labels: LabelMap
) -> None:
    """Predict the first examples of a data set and write their sheet as PNG."""
    image, mask = (
        torch.stack(part) for part in zip(*(pairs[i] for i in range(min(EXAMPLES, len(pairs)))), strict=True)
    )
    training = net.training
    like = next(net.parameters())
    net.eval()
    with torch.inference_mode():
        prediction = logits_of(net(image.to(like.device, like.dtype))).argmax(1)
    net.train(training)
    with whole_file(path) as temporary:
        PIL.Image.fromarray(sheet(image, mask, prediction, labels)).save(temporary, format="PNG")


def _joined(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures in a row (axis 1) or a column (axis 0), white between."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, dtype=np.uint8)
    parts: list[Any] = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=axis)
