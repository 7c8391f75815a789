"""The row of a run in TensorBoard's table of hyperparameters."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
from torch.utils.tensorboard.summary import hparams

from cocoseg.cli import Command
from cocoseg.config import Config
from cocoseg.events import event_file, is_shown
from cocoseg.module import SegmentationModule

GROUPS = ("experiment", "data", "model", "loss", "optimizer", "augment")
ALWAYS = (
    *("optimizer.lr", "data.batch_size", "data.image_size", "model.base_channels"),
    *("trainer.max_time", "trainer.max_epochs", "trainer.max_steps", "seed"),
)
# Where things lie and how they are shown, which says nothing of a result.
LEFT_OUT = (
    *("run_dir", "ckpt_path", "resume", "budget.extend", "prepare", "logger", "callbacks", "hydra"),
    *("data.root", "data.images", "data.annotations", "data.val_images", "data.val_annotations"),
    *("data.prepared_dir", "data.download", "data.annotations_url", "data.images_url", "trainer.profiler"),
)
LONGEST = 80  # characters of a value
MIOU, LOSS = "hp/val_miou", "hp/val_loss"


class HyperparameterRow(L.Callback):
    """Puts the run into the table when training begins, and its best validation as soon as there is one.

    The numbers are those of the weights that are kept: of the highest mIoU, where a validation that was cut
    short only counts while there is no other. They have tags of their own, so that a run that dies has the
    right ones, and the curves of each validation stay as they are.

    Args:
        config: all settings.
        command: what of them was typed.
    """

    def __init__(self, config: Config, command: Command):
        self.values = hyperparameters(config, command)
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if not is_shown(trainer):
            return
        values = dict(self.values)
        if "data.batch_size" in values and trainer.datamodule is not None:
            values["data.batch_size"] = trainer.datamodule.batch_size  # was `auto`, perhaps
        experiment, start, _ = hparams(values, {MIOU: 0.0, LOSS: 0.0})  # names; the values are not looked at
        for summary in (experiment, start):
            event_file(trainer.logger).add_summary(summary, trainer.global_step)
        if self.best:  # resumed, perhaps into a folder of its own
            trainer.logger.log_metrics(self.best, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        scores = pl_module.scores
        if trainer.sanity_checking or scores is None or math.isnan(scores.miou):
            return
        better = not self.best or scores.miou > self.best[MIOU]
        if not better or (pl_module.scores_are_partial and self.best):
            return
        self.best = {MIOU: scores.miou, LOSS: trainer.callback_metrics["val/loss"].item()}
        if is_shown(trainer):
            trainer.logger.log_metrics(self.best, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        # Of an end by an error or a kill nothing is said: TensorBoard believes the first word about an end,
        # and the run may be resumed.
        if is_shown(trainer):
            end = hparams({}, {})[2]
            event_file(trainer.logger).add_summary(end, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict)


def hyperparameters(config: Config, command: Command) -> dict[str, float | str]:
    """What was typed, as it was resolved, and what is compared in any case; the rest of the settings would
    make a table of sixty columns.

    Returns:
        Key or group -> number or text.
    """
    settings = asdict(config)
    compared = {group: command.choices.get(group) for group in GROUPS}
    compared |= {key: _found(settings, key) for key in ALWAYS}
    values = {key: value for key, value in compared.items() if value not in (None, -1)}  # -1: no limit
    for key in command.keys:
        if not any(key == other or key.startswith(f"{other}.") for other in LEFT_OUT):
            values[key] = command.choices[key] if key in command.choices else _found(settings, key)
    return {key: _plain(value) for key, value in values.items()}


def _found(settings: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is no such."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _plain(value: Any) -> float | str:
    """Numbers as they are, all else as it would be typed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
