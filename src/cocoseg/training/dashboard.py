"""TensorBoard's texts and figures. Numbers are logged where they arise."""

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import PIL.Image
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import FileWriter

from cocoseg.budget.budget import Budget
from cocoseg.budget.pacing import is_last_step
from cocoseg.config import Config
from cocoseg.figures.charts import confused_pairs, confusion_matrix, iou_bars
from cocoseg.figures.comparison import Example, draw_comparison, easy_and_hard, spread
from cocoseg.labels import LabelMap
from cocoseg.networks.pixels import denormalize
from cocoseg.overrides import Command
from cocoseg.preparation.prepared_folder import prepared_sets
from cocoseg.scores import Scores
from cocoseg.settings import as_dict
from cocoseg.training.module import SegmentationModule

log = logging.getLogger(__name__)

EXAMPLES = 8  # images shown all through a run
CANDIDATES = 32  # images from which the examples are chosen, by how hard they look
RARER = 1.25  # factor between the steps of figures and the steps of the next ones
SHARE = 0.02  # share of the time used so far that figures may take before the end of a run
GUESS = 2.0  # seconds that figures take, until some were measured
GUESS_SHARE = 0.01  # share of the limit that the guess is at most

Draw = Callable[[], PIL.Image.Image]


def is_shown(trainer: L.Trainer) -> bool:
    """Tell whether this process writes for TensorBoard."""
    return isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero


def event_file(logger: TensorBoardLogger) -> FileWriter:
    """Return the logger's event file, to write what the logger has no method for.

    After the end of a training it is a new file: the public field is None then.
    """
    return logger.experiment._get_file_writer()


class RunTexts(L.Callback):
    """Shows the command line, the resolved configuration and the report on the data."""

    def __init__(self, config: Config, command: Command):
        self.config, self.command = config, command

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_shown(trainer):
            return
        writer, step = trainer.logger.experiment, trainer.global_step
        if step:  # discards what a killed attempt has logged beyond the checkpoint
            mark = Event(session_log=SessionLog(status=SessionLog.START))
            event_file(trainer.logger).add_event(mark, step + 1)
        for name, text in self.texts().items():
            writer.add_text(f"run/{name}", text, step)

    def texts(self) -> dict[str, str]:
        """Return name -> Markdown."""
        texts = {
            "command": _verbatim(str(self.command)),
            "config": _verbatim(OmegaConf.to_yaml(OmegaConf.create(as_dict(self.config)))),
        }
        train, val = prepared_sets(self.config)
        for name, prepared in (("data", train), ("validation_data", val)):
            if prepared is not None and (file := prepared.folder / "report.md").is_file():
                texts[name] = file.read_text()
        return texts


class Figures(L.Callback):
    """Draws examples, the confusion matrix and the IoU per class after a validation.

    The examples are the same images all through a run, also if it is resumed, and in all runs of a sweep: of
    candidates that are drawn at random from the whole validation set, the hardest, the easiest and some
    between. The predicted masks are those of the validation itself; one that was cut short shows fewer.

    Figures are drawn after the last validation of a run, as many as there is time for. Before that they are
    drawn each time after a quarter more steps, if that takes at most SHARE of the time used so far. Without a
    time limit only the steps count.

    Args:
        budget: the time used and left; figures are drawn on its account.
        seed: seed of the choice of examples.
    """

    def __init__(self, budget: Budget, seed: int):
        self.budget, self.seed = budget, seed
        self.chosen: list[int] | None = None  # indices in the order of validation, the hardest first
        self.next_step = 0
        self.seconds = 0.0  # time spent on figures so far, in earlier attempts at the run too
        self._seconds_of: dict[str, float] = {}  # tag of a figure -> seconds to draw it, as last measured
        self._failed = False
        self._wanted: set[int] = set()
        self._seen: dict[int, Example] = {}
        self._index = 0  # index of the next image

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        limit = self.budget.limit
        if limit is not None and is_shown(trainer) and not self.budget.expected["figures"]:
            self.budget.expect("figures", min(GUESS, GUESS_SHARE * limit))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wanted, self._seen, self._index = set(), {}, 0
        if not is_shown(trainer) or trainer.sanity_checking:
            return
        images = _image_count(trainer)
        if self.chosen and max(self.chosen) >= images:  # resumed on other data
            self.chosen = None
        self._wanted = set(self.chosen or spread(images, CANDIDATES, self.seed))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor,
        batch: tuple[Tensor, Tensor],
        *args: Any,
    ) -> None:
        image, mask = batch
        here = [index for index in range(len(image)) if self._index + index in self._wanted]
        if here:
            parts = zip(
                denormalize(image[here]), _as_bytes(mask[here]), _as_bytes(outputs[here]), strict=True
            )
            for index, part in zip(here, parts, strict=True):
                self._seen[self._index + index] = Example(*part)
        self._index += len(image)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if not self._wanted or not self._is_due(trainer):
            return
        if not self.chosen:
            targets = {index: example.target for index, example in self._seen.items()}
            self.chosen = easy_and_hard(targets, EXAMPLES)
        ranks = enumerate(self.chosen, start=1)
        examples = {rank: self._seen[index] for rank, index in ranks if index in self._seen}
        self.next_step = math.ceil(trainer.global_step * RARER)
        matrix, labels = pl_module.matrix.numpy(), pl_module.spec.labels
        self._draw(figures(matrix, pl_module.scores, labels, examples), trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "next_step": self.next_step, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.chosen, self.next_step = state_dict["chosen"], state_dict["next_step"]
        self.seconds = state_dict["seconds"]

    def _is_due(self, trainer: L.Trainer) -> bool:
        after_fit = trainer.state.fn == TrainerFn.VALIDATING  # the training had no validation
        if after_fit or trainer.should_stop or is_last_step(trainer):
            return True
        if trainer.global_step < self.next_step:
            return False
        seconds = self.seconds + self.budget.expected["figures"]
        return self.budget.limit is None or seconds <= SHARE * self.budget.used()

    def _draw(self, figures: Mapping[str, Draw], trainer: L.Trainer) -> None:
        """Draw and write figures as long as there is time, and measure each.

        An error is logged and ends the drawing, but not the training.
        """
        if self._failed:
            return
        budget, file = self.budget, event_file(trainer.logger)
        try:
            with budget.saving("figures"):
                for tag, draw in figures.items():
                    longest = max(self._seconds_of.values(), default=0.0)
                    if budget.left() < self._seconds_of.get(tag, longest) + budget.seconds_after_figures():
                        continue
                    begin = time.monotonic()
                    file.add_summary(_image_summary(tag, draw()), trainer.global_step)
                    self._seconds_of[tag] = time.monotonic() - begin
                    self.seconds += self._seconds_of[tag]
        except Exception as error:  # whatever it is, a training of hours is worth more
            log.warning("TensorBoard's figures: %r; training goes on without them", error, exc_info=True)
            self._failed = True
        budget.expect("figures", sum(self._seconds_of.values()))


def figures(
    matrix: np.ndarray, scores: Scores, labels: LabelMap, examples: Mapping[int, Example]
) -> dict[str, Draw]:
    """Return tag -> function that draws this figure of a validation.

    Args:
        matrix: (C, C) pixels, rows the target.
        scores: scores of the same validation.
        labels: labels of the C classes.
        examples: rank -> example; 1 is the hardest.
    """
    return {
        "classes/iou": partial(iou_bars, scores.iou, labels),
        "classes/confusion": partial(confusion_matrix, matrix, labels.names),
        "classes/most_confused": partial(confused_pairs, matrix, labels.names),
        **{f"examples/{rank}": partial(draw_comparison, each, labels) for rank, each in examples.items()},
    }


def _image_summary(tag: str, figure: PIL.Image.Image) -> Summary:
    buffer = io.BytesIO()
    figure.save(buffer, format="PNG", compress_level=3)
    image = Summary.Image(
        width=figure.width, height=figure.height, colorspace=3, encoded_image_string=buffer.getvalue()
    )
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _image_count(trainer: L.Trainer) -> int:
    """Number of images that this process validates, unless the validation is cut short."""
    batches = islice(trainer.val_dataloaders.batch_sampler, int(sum(trainer.num_val_batches)))
    return sum(map(len, batches))


def _as_bytes(mask: Tensor) -> np.ndarray:
    return mask.byte().cpu().numpy()


def _verbatim(text: str) -> str:
    """Return Markdown that shows a text unchanged."""
    return "\n".join(f"    {line}" for line in text.splitlines())
