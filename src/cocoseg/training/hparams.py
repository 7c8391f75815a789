"""The run's row in TensorBoard's table of hyperparameters.

Written by hand: Lightning's `log_hyperparams(values, metrics)` says at once that the run was a success.
"""

import math
from collections.abc import Mapping, Set
from typing import Any

import lightning as L
from omegaconf import OmegaConf
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import hparams

from cocoseg.config import Config
from cocoseg.overrides import Command, key_of
from cocoseg.settings import as_dict, shown
from cocoseg.training.dashboard import event_file, is_shown
from cocoseg.training.module import SegmentationModule

# Settings that are compared even if they were not typed; all settings would be a hundred columns.
GROUPS = ("experiment", "data", "model", "loss", "optimizer", "augment")
COMPARED = (
    *("optimizer.lr", "optimizer.weight_decay", "schedule.name", "loss.class_weights"),
    *("model.base_channels", "model.depth", "model.dropout"),
    *("data.batch_size", "data.image_size", "data.subset.size"),
    *("trainer.max_time", "trainer.max_epochs", "trainer.max_steps", "seed"),
)
# Settings that do not influence the result: paths, and how things are shown.
LEFT_OUT = (
    *("run_dir", "ckpt_path", "resume", "budget.extend", "prepare", "logger", "callbacks", "hydra"),
    "sweep",
    *("data.root", "data.images", "data.annotations", "data.val_images", "data.val_annotations"),
    *("data.prepared_dir", "data.download", "data.annotations_url", "data.images_url", "trainer.profiler"),
)
MAX_LENGTH = 80  # characters of a value
MIOU, LOSS = "hp/val_miou", "hp/val_loss"


class HyperparameterRow(L.Callback):
    """Puts the run into the table when training begins, and its best validation as soon as there is one.

    The metrics are those of the exported weights, with the highest mIoU; a validation that was cut short
    counts only as long as there is no other. They have tags of their own, so that a run that fails shows
    them in its row, too.

    Args:
        config: all settings.
        command: the overrides as typed.
    """

    def __init__(self, config: Config, command: Command):
        self.values = hyperparameters(config, command)
        self.first = {key_of(override) for override in command.swept or command.overrides}
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if not is_shown(trainer):
            return
        values = dict(self.values)
        if "data.batch_size" in values and trainer.datamodule is not None:
            values["data.batch_size"] = trainer.datamodule.batch_size  # the configuration may say `auto`
        _, row, _ = hparams(values, {})
        for summary in (table(values, self.first), row):
            event_file(trainer.logger).add_summary(summary, trainer.global_step)
        if self.best:  # the run was resumed, perhaps in a new folder
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
        # Not after an error or a signal: TensorBoard takes the first end that it finds, and the run may be
        # resumed.
        if is_shown(trainer):
            _, _, success = hparams({}, {})
            event_file(trainer.logger).add_summary(success, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict)


def table(values: Mapping[str, float | str], first: Set[str]) -> Summary:
    """Describe the table's columns; TensorBoard takes the description of the first run that it finds.

    It shows five columns until more are selected: those marked as differing, then by the alphabet. PyTorch's
    `hparams` marks none.

    Args:
        values: name -> value of this run.
        first: names of the columns to be shown first.
    """
    infos = []
    for name in dict.fromkeys((*GROUPS, *COMPARED, *values)):
        is_text = isinstance(values.get(name, ""), str)
        kind = api_pb2.DATA_TYPE_STRING if is_text else api_pb2.DATA_TYPE_FLOAT64
        infos.append(api_pb2.HParamInfo(name=name, type=kind, differs=name in first))
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in (MIOU, LOSS)]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(experiment=experiment))
    return Summary(value=[Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=content)])


def hyperparameters(config: Config, command: Command) -> dict[str, float | str]:
    """Return the resolved values of the settings that were typed or that are always compared.

    Returns:
        Key or group -> number or text.
    """
    settings = OmegaConf.create(as_dict(config))
    compared = {group: command.choices.get(group) for group in GROUPS}
    compared |= {key: OmegaConf.select(settings, key) for key in COMPARED}
    values = {key: value for key, value in compared.items() if value not in (None, -1)}  # -1: no limit
    for key in map(key_of, command.overrides):
        if not any(key == other or key.startswith(f"{other}.") for other in LEFT_OUT):
            values[key] = command.choices[key] if key in command.choices else OmegaConf.select(settings, key)
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> float | str:
    """Return a number unchanged, anything else as it would be typed."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = shown(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"
