"""What TensorBoard is shown beside the numbers, which are logged where they arise."""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import PIL.Image
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import OmegaConf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import FileWriter

from cocoseg.background import BackgroundWriter
from cocoseg.budget import Budget
from cocoseg.charts import confused_pairs, confusion_matrix, iou_bars
from cocoseg.command import Command
from cocoseg.comparison import Example, easy_and_hard, spread, strip
from cocoseg.config import Config
from cocoseg.events import event_file, is_shown
from cocoseg.labels import LabelMap
from cocoseg.metrics import Scores
from cocoseg.module import SegmentationModule
from cocoseg.pacing import is_last_step
from cocoseg.pixels import denormalize
from cocoseg.prepared import prepared_sets

EXAMPLES = 8  # images shown all through a run
CANDIDATES = 32  # of which they are chosen, by how hard they look
RARER = 1.25  # times the step of the last pictures: of the next ones
MAX_BYTES = 64 * 2**20  # of pictures in a run; beyond, only those of its end
PATIENCE = 10.0  # seconds: what the end waits for pictures, at most


class RunTexts(L.Callback):
    """The command line, the resolved configuration and the report on the data, once training begins."""

    def __init__(self, config: Config, command: Command):
        self.config, self.command = config, command

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_shown(trainer):
            return
        writer, step = trainer.logger.experiment, trainer.global_step
        if step:  # what a killed attempt has logged beyond the checkpoint did not happen
            mark = Event(session_log=SessionLog(status=SessionLog.START))
            event_file(trainer.logger).add_event(mark, step + 1)
        for name, text in self.texts().items():
            writer.add_text(f"run/{name}", text, step)

    def texts(self) -> dict[str, str]:
        """Name -> Markdown."""
        texts = {
            "command": _verbatim(str(self.command)),
            "config": _verbatim(OmegaConf.to_yaml(OmegaConf.create(asdict(self.config)))),
        }
        train, val = prepared_sets(self.config)
        for name, prepared in (("data", train), ("validation_data", val)):
            if prepared is not None and (file := prepared.folder / "report.md").is_file():
                texts[name] = file.read_text()
        return texts


class Picture(NamedTuple):
    """For TensorBoard."""

    tag: str
    step: int
    picture: PIL.Image.Image


class Pictures(L.Callback):
    """Examples, confusion matrix and IoU per class after a validation, drawn and written by a thread.

    The examples are the same images all through a run, also where it is resumed, and in all runs of a sweep:
    of some that are drawn at random from all of the validation set, the hardest, the easiest and some
    between. The predictions are those of the validation itself; one that was cut short has fewer of them.

    Pictures come ever more rarely, each time after a quarter more steps, and always at the end. What is not
    drawn when the time is up is left out.

    Args:
        budget: what the end may wait, and how long pictures take.
        seed: of the choice.
    """

    def __init__(self, budget: Budget, seed: int):
        self.budget, self.seed = budget, seed
        self.chosen: list[int] | None = None  # places in the order of validation, the hardest first
        self.next_step = 0
        self.bytes = 0  # of all pictures
        self._writer: BackgroundWriter[Picture] | None = None
        self._wanted: set[int] = set()
        self._seen: dict[int, Example] = {}
        self._place = 0  # of the next image

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if is_shown(trainer):
            self._writer = BackgroundWriter(
                "TensorBoard's pictures", self._write_to(event_file(trainer.logger))
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wanted, self._seen, self._place = set(), {}, 0
        if self._writer is None or trainer.sanity_checking:
            return
        images = _images(trainer)
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
        here = [place for place in range(len(image)) if self._place + place in self._wanted]
        if here:
            parts = zip(
                denormalize(image[here]), _as_bytes(mask[here]), _as_bytes(outputs[here]), strict=True
            )
            for place, part in zip(here, parts, strict=True):
                self._seen[self._place + place] = Example(*part)
        self._place += len(image)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if not self._wanted or self._writer is None or not self._is_due(trainer):
            return
        if not self.chosen:
            truths = {place: example.truth for place, example in self._seen.items()}
            self.chosen = easy_and_hard(truths, EXAMPLES)
        step = trainer.global_step
        self.next_step = math.ceil(step * RARER)
        examples = {
            f"examples/{rank}": self._seen[place]
            for rank, place in enumerate(self.chosen, start=1)
            if place in self._seen
        }
        matrix, labels = pl_module.matrix.numpy(), pl_module.spec.labels
        self._writer.submit(self._drawn(step, examples, matrix, pl_module.scores, labels))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._finish()  # before the logger closes its file

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "next_step": self.next_step, "bytes": self.bytes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.chosen = state_dict["chosen"]
        self.next_step, self.bytes = state_dict["next_step"], state_dict["bytes"]

    def _is_due(self, trainer: L.Trainer) -> bool:
        alone = trainer.state.fn == TrainerFn.VALIDATING  # after a training that had no validation
        last = alone or trainer.should_stop or is_last_step(trainer)
        return last or (trainer.global_step >= self.next_step and self.bytes < MAX_BYTES)

    def _drawn(
        self, step: int, examples: dict[str, Example], matrix: np.ndarray, scores: Scores, labels: LabelMap
    ) -> Iterator[Picture]:
        """In the thread: one picture after the other."""
        begin = time.monotonic()
        yield Picture("classes/iou", step, iou_bars(scores.iou, labels))
        yield Picture("classes/confusion", step, confusion_matrix(matrix, labels.names))
        yield Picture("classes/most_confused", step, confused_pairs(matrix, labels.names))
        for tag, example in examples.items():
            yield Picture(tag, step, strip(example, labels))
        seconds = min(PATIENCE, time.monotonic() - begin)
        self.budget.expected.pictures = max(self.budget.expected.pictures, seconds)

    def _write_to(self, file: FileWriter) -> Callable[[Picture], None]:
        def write(drawn: Picture) -> None:
            buffer = io.BytesIO()
            drawn.picture.save(buffer, format="PNG", compress_level=3)
            content = buffer.getvalue()
            width, height = drawn.picture.size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
            summary = Summary(value=[Summary.Value(tag=drawn.tag, image=image)])
            file.add_summary(summary, drawn.step)
            self.bytes += len(content)

        return write

    def _finish(self) -> None:
        if self._writer is None:
            return
        with self.budget.timed("saving"):
            left = self.budget.left() - self.budget.after_training()
            self._writer.finish(min(PATIENCE, max(0.0, left)))
        self._writer = None


def _images(trainer: L.Trainer) -> int:
    """How many images this process is going to validate, a cut apart."""
    batches = islice(trainer.val_dataloaders.batch_sampler, int(sum(trainer.num_val_batches)))
    return sum(map(len, batches))


def _as_bytes(mask: Tensor) -> np.ndarray:
    return mask.byte().cpu().numpy()


def _verbatim(text: str) -> str:
    """As Markdown that shows it as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
