"""The end of a run: the exported model, its scores, a sheet of examples, other formats, the summary."""

import copy
import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from cocoseg.budget import END, Budget, time_line
from cocoseg.comparison import Example, sheet, spread
from cocoseg.console import score_table
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.exporting import FORMATS
from cocoseg.files import PART, from_here, save_png, write_json
from cocoseg.labels import LabelMap
from cocoseg.model_file import NETWORKS, read_weights, save_model
from cocoseg.module import SegmentationModule
from cocoseg.outputs import logits_of
from cocoseg.pixels import denormalize
from cocoseg.scores import Scores

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

    def __call__(self, checkpoint: Path | None = None) -> None:
        """Export the weights and scores of a checkpoint; without one those that the module has now.

        The checkpoint of a validation holds the weights that were scored. Those of the module may be others
        by then: a callback that averages weights puts the average in their place for the validation only.
        """
        spec, net, scores = self.module.spec, self.module.net, self.module.scores
        with self.budget.watches.export.running():
            if checkpoint is not None:
                content = read_weights(checkpoint, mmap=True)
                net = copy.deepcopy(net)
                net.load_state_dict(content["state_dict"])
                scores = Scores(**content["scores"]) if content["scores"] else None
            save_model(self.run_dir / MODEL, net.state_dict(), spec, scores and scores.to_dict())
            write_sheet(self.run_dir / SHEET, net, self.data.val_set, spec.labels, self.data.config.seed)
            if scores:
                iou = dict(zip(spec.labels.unique_names, scores.iou, strict=True))
                write_json(self.run_dir / METRICS, {**scores.to_dict(), "iou": iou})
        self.scores, self.exported = scores, True


def finish(trainer: L.Trainer, exporter: Exporter, formats: Sequence[str], *, stopped: bool) -> None:
    """Export the best weights by val/miou where that is not done yet, write other formats, log a summary.

    A run that ended before its first validation exports the weights it has, without scores.

    Args:
        formats: see `write_formats`.
        stopped: a signal ended the run.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not trainer.is_global_zero:
        return
    if not exporter.exported and best:
        exporter(Path(best))
    elif not exporter.exported:
        exporter()
    written = write_formats(exporter, formats, stopped=stopped)
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
    for line in written:
        log.info("             %s", line)
    log.info("predictions  %s (image | truth | prediction | wrong)", shown / SHEET)


def write_formats(exporter: Exporter, names: Sequence[str], *, stopped: bool) -> list[str]:
    """Write the exported model in other formats, each by a process that is ended when the time is up.

    A format that is not written is a warning with the command that writes it later.

    Args:
        names: keys of FORMATS; others, such as `pth`, are left out.
        stopped: write none, because the sender of the signal may kill the process soon.

    Returns:
        a line about each file.
    """
    lines = []
    model = from_here(exporter.run_dir / MODEL)
    target = exporter.module.spec.network["_target_"]
    for name in dict.fromkeys(name for name in names if name in FORMATS):
        command = ["-m", "cocoseg.export", f"checkpoint={model}", f"formats={name}"]
        if target not in NETWORKS:
            command.append(f"network={target}")
        line, problem = "", "a signal ended the run"
        if not stopped:
            with exporter.budget.watches.formats.running():
                line, problem = _run_python(command, exporter.budget.left() - END)
        if problem:
            for part in exporter.run_dir.glob(f"{PART}*{FORMATS[name].SUFFIX}"):
                part.unlink(missing_ok=True)
            log.warning("%s not written: %s; later: python %s", name, problem, shlex.join(command))
        else:
            lines.append(line)
    return lines


def _run_python(arguments: Sequence[str], seconds: float) -> tuple[str, str]:
    """Run Python with these arguments for so many seconds at most. Returns the last line that it printed,
    and why it failed, or nothing."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    timeout = None if math.isinf(seconds) else max(0.0, seconds)
    try:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return "", "there was no time left"
    printed = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    last = printed[-1] if printed else f"exit code {done.returncode}"
    return ("", last.removeprefix("error: ")) if done.returncode else (last, "")


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
