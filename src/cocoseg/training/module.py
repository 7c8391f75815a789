"""Training and validation steps: loss, metrics, optimizer. No architecture, no file I/O."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer

from cocoseg.networks.old_files import drop_average, drop_deep_supervision
from cocoseg.networks.outputs import Output, logits_of, training_loss
from cocoseg.networks.spec import ModelSpec
from cocoseg.scores import Scores
from cocoseg.training.metrics import ConfusionMatrix, MeanLoss

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # image (B, 3, H, W) float32, mask (B, H, W) int64


class SegmentationModule(L.LightningModule):
    """Trains a network with a loss and an optimizer, and scores it.

    Args:
        net: image (B, 3, H, W) -> logits (B, C, H, W), or a mapping with them, see outputs.py.
        loss: logits and mask -> scalar, a mean over the pixels that are not ignored.
        optimizer: parameters -> optimizer.
        spec: description of the network, saved in every checkpoint.

    Attributes:
        scores, matrix: scores and confusion matrix (C, C) int64 of the last validation, rows the target.
        scores_are_partial: the last validation was cut short and covers only a part of its images.
        compiled: replaces the network in training, if it was compiled.
        base_rates: learning rate of each parameter group of each optimizer, which a schedule scales.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        spec: ModelSpec,
    ):
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = optimizer
        self.spec = spec
        self.scores: Scores | None = None
        self.matrix: Tensor | None = None
        self.scores_are_partial = False
        self.compiled: Callable[[Tensor], Output] | None = None
        self.base_rates: list[list[float]] = []
        self.train_loss = MeanLoss()
        self.val_loss = MeanLoss()
        self.confusion = ConfusionMatrix(len(spec.labels))
        self._batches = 0  # number of batches in the current validation

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, H, W) of image (B, 3, H, W)."""
        return logits_of(self.net(image))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        image, mask = batch
        output = (self.compiled or self.net)(image.to(self.dtype))
        total, loss = training_loss(self.loss, output, mask)
        self.train_loss.update(loss.detach(), mask)
        self.log("train/loss_step", loss, prog_bar=True)
        return total

    def on_train_epoch_end(self) -> None:
        if self.train_loss.update_called:
            self.log("train/loss", self.train_loss.compute())
            self.train_loss.reset()
        elif self.scores is not None:  # resumed at the end of an epoch, whose scores still hold
            self._log_scores(self.scores)

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()
        self.val_loss.reset()
        self._batches = 0

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the predicted class indices (B, H, W) int64."""
        image, mask = batch
        logits = self(image.to(self.dtype))
        predicted = logits.argmax(1)
        self.val_loss.update(self.loss(logits, mask), mask)
        self.confusion.update(predicted, mask)
        self._batches += 1
        return predicted

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        self.matrix = self.confusion.compute().cpu()
        self.scores = Scores.from_matrix(self.matrix.numpy())
        self.scores_are_partial = self._batches < sum(self.trainer.num_val_batches)
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self._log_scores(self.scores)

    def _log_scores(self, scores: Scores) -> None:
        self.log("val/miou", scores.miou, prog_bar=True)
        self.log("val/miou_with_background", scores.miou_with_background)
        self.log("val/pixel_accuracy", scores.pixel_accuracy)
        for name, iou in zip(self.spec.labels.unique_names, scores.iou, strict=True):
            if iou is not None:
                self.log(f"iou/{name}", iou)

    def configure_optimizers(self) -> Optimizer:
        # The loss may have weights, too.
        optimizer = self.make_optimizer([weight for weight in self.parameters() if weight.requires_grad])
        # Kept before a checkpoint is loaded, which sets the rates of its time.
        self.base_rates = [[group["lr"] for group in optimizer.param_groups]]
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["spec"] = self.spec.to_dict()
        checkpoint["scores"] = self.scores.to_dict() if self.scores else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if drop_average(checkpoint["state_dict"]):
            log.info("the checkpoint's averaged weights are left out: there is no `ema` any more")
        if drop_deep_supervision(checkpoint["spec"]["network"], checkpoint["state_dict"]):
            # The saved moments are those of the heads too, so Adam begins anew.
            checkpoint["optimizer_states"] = [self.configure_optimizers().state_dict()]
        self.scores = Scores(**checkpoint["scores"]) if checkpoint["scores"] else None
