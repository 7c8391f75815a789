"""Texts and figures for TensorBoard and other loggers. Numbers are logged where they arise."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import PIL.Image
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.tensorboard import FileWriter

from cocoseg.budget.budget import Budget
from cocoseg.budget.pacing import is_last_step
from cocoseg.config import Config
from cocoseg.config_checks import as_dict
from cocoseg.durations import now
from cocoseg.figures.charts import confusion_matrix, iou_bars
from cocoseg.figures.comparison import Example, draw_comparison, spread
from cocoseg.labels import LabelMap
from cocoseg.networks.pixels import denormalize
from cocoseg.overrides import Command
from cocoseg.preparation.prepared_folder import prepared_sets
from cocoseg.scores import Scores
from cocoseg.training.module import Batch, SegmentationModule

log = logging.getLogger(__name__)

EXAMPLES = 8  # images shown all through a run, and on the sheet at its end
RARER = 1.25  # factor by which the number of steps grows from one drawing to the next
# The tab of custom scalars; the regular expressions match tags.
CHARTS = {
    "training and validation": {
        "loss": ["Multiline", ["^train/loss$", "^val/loss$"]],
        "mIoU": ["Multiline", ["^val/miou"]],
        "IoU of each class": ["Multiline", ["^validation_iou/"]],
    }
}
SHARE = 0.02  # share of the time used so far that figures may take before the end of a run
GUESS = 2.0  # seconds: expected time of the first figures
GUESS_SHARE = 0.01  # share of the limit that the guess may be at most


def tensorboard_of(trainer: L.Trainer) -> TensorBoardLogger | None:
    """Return TensorBoard's logger; None where there is none, and on other ranks than zero."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return next((logger for logger in loggers if isinstance(logger, TensorBoardLogger)), None)


def takes_figures(logger: Logger) -> bool:
    """Tell whether a logger can show figures."""
    return isinstance(logger, TensorBoardLogger | MLFlowLogger) or hasattr(logger, "log_image")


def add_figure(logger: Logger, tag: str, figure: PIL.Image.Image, step: int) -> None:
    """Give a figure to a logger: TensorBoard's, MLflow's, or one with `log_image` as that of W&B."""
    pixels = np.asarray(figure)
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, key=tag, step=step)
    else:
        other: Any = logger
        other.log_image(tag, [pixels], step=step)


def event_file(logger: TensorBoardLogger) -> FileWriter:
    """Return the logger's event file, to write what the logger has no method for.

    After the end of a training the public `file_writer` is None; this function opens a new file then.
    """
    return logger.experiment._get_file_writer()


class RunTexts(L.Callback):
    """Shows the command line, the resolved configuration and the report on the data, and lays out charts.

    Loggers beside TensorBoard's get the configuration as hyperparameters.
    """

    def __init__(self, config: Config, command: Command):
        self.config, self.command = config, command

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board = tensorboard_of(trainer)
        for logger in trainer.loggers:
            if logger is not board:
                logger.log_hyperparams(as_dict(self.config))
        if board is None:
            return
        writer, step = board.experiment, trainer.global_step
        if step:  # discards what a killed attempt has logged beyond the checkpoint
            mark = Event(session_log=SessionLog(status=SessionLog.START))
            event_file(board).add_event(mark, step + 1)
        writer.add_custom_scalars(CHARTS)
        writer.add_text("run/command", _verbatim(str(self.command)), step)
        settings = OmegaConf.create(as_dict(self.config))
        writer.add_text("run/config", _verbatim(OmegaConf.to_yaml(settings)), step)
        sets = prepared_sets(self.config) if self.config.data.own is None else (None, None)
        for name, prepared in zip(("data", "validation_data"), sets, strict=True):
            if prepared is not None and (report := prepared.folder / "report.md").is_file():
                writer.add_text(f"run/{name}", report.read_text(), step)


class Figures(L.Callback):
    """Draws examples, the confusion matrix and the IoU per class after a validation.

    The examples are the same images all through a run, evenly spread over the validation set. The
    predicted masks are those of the validation itself; one that was cut short shows fewer.

    Figures are drawn after the last validation of a run, as many as there is time for. After earlier ones
    they are drawn if the number of steps has grown by a quarter since the last drawing, and if all drawings
    take at most SHARE of the time used so far. Without a time limit only the steps count.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.next_step = 0
        self._seconds = 0.0  # seconds spent on figures in this attempt
        self._longest = 0.0  # seconds that a single figure took at most
        self._wanted: list[int] = []  # positions of the examples among the images of a validation
        self._examples: list[Example] = []  # examples of this validation
        self._index = 0  # position of the next image
        guess = min(GUESS, GUESS_SHARE * (budget.limit or 0.0))
        budget.expect("figures", budget.expected["figures"] or guess)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wanted, self._examples, self._index = [], [], 0
        is_shown = any(map(takes_figures, trainer.loggers))
        loader: Any = trainer.val_dataloaders  # a single one
        if is_shown and not trainer.sanity_checking:
            batches = islice(loader.batch_sampler, int(sum(trainer.num_val_batches)))
            self._wanted = spread(sum(map(len, batches)), EXAMPLES)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Tensor, batch: Batch, *args: Any
    ) -> None:
        image, mask = batch
        here = [index - self._index for index in self._wanted if 0 <= index - self._index < len(image)]
        if here:
            self._examples += examples_of(image[here], mask[here], outputs[here])
        self._index += len(image)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        scores, matrix = pl_module.scores, pl_module.matrix
        if not self._wanted or scores is None or matrix is None or not self._is_due(trainer):
            return
        self.next_step = math.ceil(trainer.global_step * RARER)
        labels = pl_module.spec.labels
        try:
            self._write(figures(matrix.numpy(), scores, labels, self._examples), trainer)
        except Exception as error:  # whatever it is, a training of hours is worth more
            log.warning("figures for the loggers: %r; training goes on without them", error, exc_info=True)

    def _is_due(self, trainer: L.Trainer) -> bool:
        after_fit = trainer.state.fn == TrainerFn.VALIDATING  # the training had no validation
        if after_fit or trainer.should_stop or is_last_step(trainer):
            return True
        seconds = self._seconds + self.budget.expected["figures"]
        has_time = self.budget.limit is None or seconds <= SHARE * self.budget.used()
        return has_time and trainer.global_step >= self.next_step

    def _write(self, figures: Iterator[tuple[str, PIL.Image.Image]], trainer: L.Trainer) -> None:
        """Draw and write figures as long as there is time."""
        budget = self.budget
        with budget.saving("figures"):
            begin = now()
            for tag, figure in figures:
                for logger in filter(takes_figures, trainer.loggers):
                    add_figure(logger, tag, figure, trainer.global_step)
                begin, seconds = now(), now() - begin
                self._seconds += seconds
                self._longest = max(self._longest, seconds)
                if budget.left() < self._longest + budget.seconds_after_figures():
                    break


def figures(
    matrix: np.ndarray, scores: Scores, labels: LabelMap, examples: Sequence[Example]
) -> Iterator[tuple[str, PIL.Image.Image]]:
    """Yield the figures of a validation, each drawn when it is asked for: tag and figure.

    Args:
        matrix: (C, C) pixels, rows the target.
        scores, labels, examples: of the same validation.
    """
    yield "validation_classes/iou", iou_bars(scores.iou, labels)
    yield "validation_classes/confusion", confusion_matrix(matrix, labels.names)
    for number, example in enumerate(examples, start=1):
        yield f"validation_examples/{number}", draw_comparison(example, labels)


def examples_of(image: Tensor, mask: Tensor, predicted: Tensor) -> list[Example]:
    """Return a batch as examples: image (B, 3, H, W) normalized, mask and predicted (B, H, W) int64."""
    parts = (denormalize(image), mask.byte().cpu().numpy(), predicted.byte().cpu().numpy())
    return [Example(*part) for part in zip(*parts, strict=True)]


def _verbatim(text: str) -> str:
    """Return Markdown that shows a text unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())
