"""Training, validation, test and prediction steps: loss, metrics, optimizer. No architecture."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cocoseg.budget.lightning_internals import log_interval
from cocoseg.config import DataConfig, as_pair
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap
from cocoseg.networks.custom import describe
from cocoseg.networks.model_file import load_network
from cocoseg.networks.old_files import drop_average, drop_deep_supervision
from cocoseg.networks.outputs import Output, logits_of, training_loss
from cocoseg.networks.spec import ModelSpec
from cocoseg.scores import Scores
from cocoseg.training.losses import CrossEntropyLoss
from cocoseg.training.metrics import ConfusionMatrix, MeanLoss

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # image (B, 3, H, W) float32, normalized; mask (B, H, W) int64


class SegmentationModule(L.LightningModule):
    """Trains a network with a loss and an optimizer, and scores it.

    Args:
        net: image (B, 3, H, W) -> logits (B, C, H, W), or a mapping with them, see outputs.py.
        labels: the classes, in the order of the C channels; not needed with `spec`.
        loss: logits and mask -> scalar, a mean over the pixels that are not ignored; None for cross entropy.
        optimizer: parameters -> optimizer; Adam with its learning rate of 0.001 by default.
        spec: description of the network, saved in every checkpoint; None for one made of `net` and `labels`.

    Attributes:
        scores, matrix: those of the last validation, or None; the matrix (C, C) int64 has the target in rows.
        scores_are_partial: the last validation was cut short and covers only a part of its images.
        compiled: replaces the network in training, if it was compiled.
        base_rates: learning rate of each parameter group of each optimizer, which a schedule scales.

    Raises:
        CocosegError: labels are missing, or not as many as the network has channels.
    """

    def __init__(
        self,
        net: nn.Module,
        labels: LabelMap | None = None,
        loss: nn.Module | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = Adam,
        spec: ModelSpec | None = None,
    ):
        super().__init__()
        self.net = net
        self.loss = loss or CrossEntropyLoss()
        self.make_optimizer = optimizer
        self.spec = spec = spec or _spec_of(net, labels)
        self.scores: Scores | None = None
        self.matrix: Tensor | None = None
        self.scores_are_partial = False
        self.compiled: Callable[[Tensor], Output] | None = None
        self.base_rates: list[list[float]] = []
        self.train_loss = MeanLoss()
        self.val_loss = MeanLoss()
        self.confusion = ConfusionMatrix(len(spec.labels))
        self._batches = 0  # number of batches in the current validation

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | Path, map_location: Any = None, net: Any = None, **arguments: Any
    ) -> Self:
        """Load the network of a checkpoint or a model file safely.

        Args:
            net: a custom network, its class or the name of the class; see `load_network`, also for errors.
            arguments: `loss` and `optimizer`, which no file holds.
        """
        net, spec, scores = load_network(checkpoint_path, net)
        module = cls(net, spec=spec, **arguments)
        module.scores = Scores(**scores) if scores else None
        return module.to(map_location)

    def setup(self, stage: str) -> None:
        """Take over how the images to train on are read (size, EXIF, bits); refuse data of other classes."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SegmentationDataModule):
            if difference := self.spec.labels.difference(data.labels):
                raise CocosegError(f"the module has other labels than these data: {difference} in the data")
            if stage == "fit":
                self.spec = data.describe(self.spec.network, self.spec.license)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, H, W) of image (B, 3, H, W)."""
        return logits_of(self.net(image))

    def training_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Tensor:
        """Return the loss of a `Batch`, which may have a third part: the weight of each image, (B,)."""
        image, mask, *weight = batch
        output = (self.compiled or self.net)(image.to(self.dtype))
        total, loss = training_loss(self.loss, output, mask, *weight)
        self.train_loss.update(loss.detach(), mask)
        self.log("train/loss_step", loss, prog_bar=True)
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of all gradients, before they are clipped, and the most GPU memory in use so far."""
        every = log_interval(self.trainer)
        if not every or (self.trainer.global_step + 1) % every:
            return
        gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
        self.log("train/gradient_norm", nn.utils.get_total_norm(gradients))
        if self.device.type == "cuda":
            self.log("train/memory_gpu_gib", torch.cuda.max_memory_allocated(self.device) / 2**30)

    def on_train_epoch_end(self) -> None:
        if self.train_loss.update_called:
            self.log("train/loss", self.train_loss.compute())
            self.train_loss.reset()
        elif self.scores is not None:  # resumed at the end of an epoch, whose scores still hold
            _log_scores(self, self.scores)

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
        _log_scores(self, self.scores)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.log("test/loss", self.val_loss.compute())
        _log_scores(self, Scores.from_matrix(self.confusion.compute().cpu().numpy()), "test", "test_iou")

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_index: int) -> Tensor:
        """Return the predicted class indices (B, H, W) uint8 of a `Batch`, or of its images alone."""
        image = batch if isinstance(batch, Tensor) else batch[0]
        return self(image.to(self.dtype)).argmax(1).to(torch.uint8)

    def configure_optimizers(self) -> Optimizer:
        # The loss may have weights, too.
        optimizer = self.make_optimizer([weight for weight in self.parameters() if weight.requires_grad])
        # Noted here, because a checkpoint that is loaded later sets the rates of its own time.
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


def _log_scores(
    module: SegmentationModule, scores: Scores, group: str = "val", iou_group: str = "validation_iou"
) -> None:
    """Log scores as `group`/…, and as `iou_group`/… the IoU of each class that occurs."""
    module.log(f"{group}/miou", scores.miou, prog_bar=True)
    module.log(f"{group}/miou_with_background", scores.miou_with_background)
    module.log(f"{group}/pixel_accuracy", scores.pixel_accuracy)
    for label, iou in zip(module.spec.labels.unique_names, scores.iou, strict=True):
        if iou is not None:
            module.log(f"{iou_group}/{label}", iou)


def _spec_of(net: nn.Module, labels: LabelMap | None) -> ModelSpec:
    """Describe a network for these labels and images of the default size."""
    if labels is None:
        raise CocosegError("SegmentationModule: labels are missing; labels=data.labels has those of the data")
    network = describe(net)
    channels = network.get("num_classes", len(labels))
    if channels != len(labels):
        raise CocosegError(
            f"SegmentationModule: a network of {channels} classes for {len(labels)} labels, background "
            "included; build it with num_classes=len(data.labels)"
        )
    return ModelSpec(network, labels, as_pair(DataConfig().image_size))
