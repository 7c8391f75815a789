"""What a run leaves behind: the exported model, its scores, a picture sheet, and the last words."""

import logging
from pathlib import Path

import lightning as L

from cocoseg.console import score_table
from cocoseg.dashboard import write_sheet
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.export import read_weights, save_model
from cocoseg.files import from_here, write_json
from cocoseg.metrics import Scores
from cocoseg.module import SegmentationModule

log = logging.getLogger(__name__)


def finish(
    trainer: L.Trainer, module: SegmentationModule, data: SegmentationDataModule, run_dir: Path
) -> None:
    """Export the best weights and say how good they are and where everything lies.

    Best is by val/miou; a run that ended before its first validation exports the weights it has, without
    scores.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    scores = module.scores
    if best:
        content = read_weights(best)
        module.net.load_state_dict(content["state_dict"])
        scores = Scores(**content["scores"])
    if not trainer.is_global_zero:
        return
    model_file = run_dir / "segmentation_model.pth"
    save_model(model_file, module.net.state_dict(), module.spec, scores and scores.to_dict())
    write_sheet(run_dir / "examples.png", module.net, data.val_set, module.spec.labels)
    if scores is not None:
        named = {**scores.to_dict(), "iou": dict(zip(module.spec.labels.names, scores.iou, strict=True))}
        write_json(run_dir / "metrics.json", named)
        log.info("\n%s\n", score_table(scores, module.spec.labels))
    else:
        log.warning("stopped before the first validation: there are no scores")
    shown = from_here(run_dir)
    log.info("trained      %d epochs, %d steps", trainer.current_epoch, trainer.global_step)
    log.info("run          %s", shown)
    log.info("dashboard    tensorboard --logdir %s", shown.parent)
    log.info("model        %s", shown / model_file.name)
    log.info("predictions  %s (image | truth | prediction)", shown / "examples.png")
