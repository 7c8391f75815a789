"""The row of a run in TensorBoard's table of hyperparameters."""

import math
import time
from collections.abc import Mapping, Set
from dataclasses import asdict
from typing import Any

import lightning as L
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.api_pb2 import (
    DataType,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
    Status,
)
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    PLUGIN_DATA_VERSION,
    PLUGIN_NAME,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from cocoseg.command import Command, key_of
from cocoseg.config import Config
from cocoseg.dashboard import event_file, is_shown
from cocoseg.module import SegmentationModule

# What is compared, whoever typed it; all settings would be eighty columns.
GROUPS = ("experiment", "data", "model", "loss", "optimizer", "augment")
COMPARED = (
    *("optimizer.lr", "optimizer.weight_decay", "schedule.name", "ema", "loss.class_weights"),
    *("model.base_channels", "model.depth", "model.dropout"),
    *("data.batch_size", "data.image_size", "data.subset.size"),
    *("trainer.max_time", "trainer.max_epochs", "trainer.max_steps", "seed"),
)
# Where things lie and how they are shown, which says nothing of a result.
LEFT_OUT = (
    *("run_dir", "ckpt_path", "resume", "budget.extend", "prepare", "logger", "callbacks", "hydra"),
    "sweep",
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
        self.first = {key_of(override) for override in command.swept or command.overrides}
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if not is_shown(trainer):
            return
        values = dict(self.values)
        if "data.batch_size" in values and trainer.datamodule is not None:
            values["data.batch_size"] = trainer.datamodule.batch_size  # was `auto`, perhaps
        for summary in (table(values, self.first), session_start(values)):
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
            event_file(trainer.logger).add_summary(session_end(), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict)


def table(values: Mapping[str, float | str], first: Set[str]) -> Summary:
    """The columns, for TensorBoard, which takes those of the first run that it finds.

    It shows five of them until it is told otherwise: those that are said to differ, then by the alphabet.

    Args:
        values: of the run.
        first: keys to be shown first.
    """
    names = [*dict.fromkeys((*GROUPS, *COMPARED, *values))]
    infos = [HParamInfo(name=name, type=_kind(values.get(name, "")), differs=name in first) for name in names]
    metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in (MIOU, LOSS)]
    experiment = Experiment(hparam_infos=infos, metric_infos=metrics)
    return _summary(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


def session_start(values: Mapping[str, float | str]) -> Summary:
    """The row."""
    start = SessionStartInfo(start_time_secs=time.time())
    for key, value in values.items():
        if isinstance(value, str):
            start.hparams[key].string_value = value
        else:
            start.hparams[key].number_value = value
    return _summary(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def session_end() -> Summary:
    """That the run came to its end."""
    end = SessionEndInfo(status=Status.STATUS_SUCCESS, end_time_secs=time.time())
    return _summary(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _summary(tag: str, content: HParamsPluginData) -> Summary:
    content.version = PLUGIN_DATA_VERSION
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])


def _kind(value: float | str) -> int:
    return DataType.DATA_TYPE_STRING if isinstance(value, str) else DataType.DATA_TYPE_FLOAT64


def hyperparameters(config: Config, command: Command) -> dict[str, float | str]:
    """What was typed, as it was resolved, and what is compared in any case.

    Returns:
        Key or group -> number or text.
    """
    settings = asdict(config)
    compared = {group: command.choices.get(group) for group in GROUPS}
    compared |= {key: _found(settings, key) for key in COMPARED}
    values = {key: value for key, value in compared.items() if value not in (None, -1)}  # -1: no limit
    for key in map(key_of, command.overrides):
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
