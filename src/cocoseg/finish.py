"""What a run leaves behind: the exported model, its scores, a picture sheet, and the last words."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from cocoseg.budget import Budget, time_line
from cocoseg.comparison import Example, sheet, spread
from cocoseg.console import score_table
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.export import read_weights, save_model
from cocoseg.files import from_here, save_png, write_json
from cocoseg.formats import ExtraFormats
from cocoseg.labels import LabelMap
from cocoseg.metrics import Scores
from cocoseg.module import SegmentationModule
from cocoseg.outputs import logits_of
from cocoseg.pixels import denormalize

log = logging.getLogger(__name__)

MODEL, METRICS, SHEET = "segmentation_model.pth", "metrics.json", "examples.png"
EXAMPLES = 8  # on the sheet


class Exporter:
    """Writes the model, its scores and a sheet of examples to the run folder.

    Done whenever a validation finds a better model, so that from the first one on there always is a valid
    file; and at the end, where none of this attempt was better than what it went on from.
    """

    def __init__(
        self, module: SegmentationModule, data: SegmentationDataModule, run_dir: Path, budget: Budget
    ):
        self.module, self.data, self.run_dir, self.budget = module, data, run_dir, budget
        self.scores: Scores | None = None
        self.exported = False

    def __call__(self) -> None:
        """Export the weights and scores that the module has now."""
        begin = time.monotonic()
        module, labels = self.module, self.module.spec.labels
        with self.budget.timed("saving"):
            self.scores = module.scores
            scores = self.scores and self.scores.to_dict()
            save_model(self.run_dir / MODEL, module.result.state_dict(), module.spec, scores)
            write_sheet(self.run_dir / SHEET, module.result, self.data.val_set, labels, self.data.config.seed)
            if scores:
                named = {**scores, "iou": dict(zip(labels.unique_names, self.scores.iou, strict=True))}
                write_json(self.run_dir / METRICS, named)
        self.exported = True
        self.budget.expected.export = max(self.budget.expected.export, time.monotonic() - begin)

    def export_from(self, checkpoint: str | Path) -> None:
        """Export the weights and scores of a checkpoint file."""
        content = read_weights(checkpoint)
        self.module.result.load_state_dict(content["state_dict"])
        self.module.scores = Scores(**content["scores"]) if content["scores"] else None
        self()


def finish(trainer: L.Trainer, exporter: Exporter, formats: ExtraFormats) -> None:
    """See that the best weights are exported, and say how good they are and where everything lies.

    Best is by val/miou; a run that ended before its first validation exports the weights it has, without
    scores.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not trainer.is_global_zero:
        return
    if not exporter.exported and best:
        exporter.export_from(best)
    elif not exporter.exported:
        exporter()
    written = formats.write(exporter.run_dir / MODEL)
    if exporter.scores is not None:
        log.info("\n%s\n", score_table(exporter.scores, exporter.module.spec.labels))
    else:
        log.warning("stopped before the first validation: there are no scores")
    shown = from_here(exporter.run_dir)
    log.info("trained      %d epochs, %d steps", trainer.current_epoch, trainer.global_step)
    log.info("time         %s", time_line(exporter.budget))
    log.info("run          %s", shown)
    log.info("dashboard    tensorboard --logdir %s", shown.parent)
    log.info("model        %s", shown / MODEL)
    for done in written:
        log.info("             %s: %s", shown / done.path.name, done)
    log.info("predictions  %s (image | truth | prediction | wrong)", shown / SHEET)


def write_sheet(
    path: Path, net: torch.nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], labels: LabelMap, seed: int
) -> None:
    """Predict some images from all over a data set and write their strips as PNG, the hardest first."""
    numbers = spread(len(pairs), EXAMPLES, seed)
    image, mask = (torch.stack(part) for part in zip(*(pairs[i] for i in numbers), strict=True))
    training = net.training
    like = next(net.parameters())
    net.eval()
    with torch.inference_mode():
        prediction = logits_of(net(image.to(like.device, like.dtype))).argmax(1).cpu()
    net.train(training)
    parts = (denormalize(image), mask.byte().numpy(), prediction.byte().numpy())
    examples = [Example(*part) for part in zip(*parts, strict=True)]
    save_png(path, sheet(examples, labels), compress_level=3)
