"""Network, loss and trainer, as a configuration names them."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import nn

from cocoseg import distributed
from cocoseg.budget.open_run import Run
from cocoseg.budget.pacing import trainer_settings
from cocoseg.cli import build
from cocoseg.config import Config, conf_folder
from cocoseg.config_checks import parameters_of
from cocoseg.data.class_balance import class_weights
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError, reason_of
from cocoseg.files import read_yaml
from cocoseg.networks.custom import arguments_of, is_built_in, try_network
from cocoseg.networks.device import resolve_precision
from cocoseg.networks.model_file import read_checkpoint, without_weights
from cocoseg.networks.pretrained import Pretrained, read_pretrained
from cocoseg.overrides import key_of
from cocoseg.training.batch_size import largest_batch
from cocoseg.training.checkpoints import WholeCheckpointIO
from cocoseg.training.console import ShortProfiler
from cocoseg.training.losses import try_loss
from cocoseg.training.module import SegmentationModule
from cocoseg.training.optimizer import optimizer_of, with_fused

log = logging.getLogger(__name__)

Start = dict[str, Any] | Pretrained | None  # the checkpoint that is resumed, or weights to begin with


def read_start(config: Config, run: Run) -> Start:
    """Read the checkpoint that is resumed, or the weights that a new run begins with, if there are any.

    Raises:
        CocosegError: a file can't be read, or `model` is wrong, see `arguments_of`.
    """
    arguments_of(config.model)
    if run.checkpoint is None:
        return _read_pretrained_once(config)
    checkpoint = read_checkpoint(run.checkpoint)
    run.budget.resume(checkpoint.get("budget"))
    run.trained = checkpoint["epoch"], checkpoint["global_step"]
    return checkpoint


def _read_pretrained_once(config: Config) -> Pretrained | None:
    """Read pretrained weights, which one process per machine downloads."""
    weights = read_pretrained(config.model) if distributed.is_first_of_machine() else None
    distributed.barrier()
    return weights or read_pretrained(config.model)


def build_module(config: Config, run: Run, data: SegmentationDataModule, start: Start) -> SegmentationModule:
    """Build network, loss and optimizer for the classes of the data.

    Raises:
        CocosegError: the checkpoint to resume has another network, other labels or other parameter groups.
    """
    network = arguments_of(config.model, len(data.labels))
    net = build(without_weights(network) if isinstance(start, dict) else network, "model")
    net = net.to(memory_format=torch.channels_last)
    license = start["spec"].license if isinstance(start, dict) else None
    if isinstance(start, Pretrained):
        start.load_into(net, data.labels)
        license = start.license
    optimizer = optimizer_of(config, net)
    spec = data.describe(network, license)
    module = SegmentationModule(net, loss=build_loss(config, run, data), optimizer=optimizer, spec=spec)
    if isinstance(start, dict):
        spec.require_same(start["spec"], where=str(run.checkpoint))
        try:
            for state in start["optimizer_states"]:
                module.configure_optimizers().load_state_dict(state)
        except ValueError as error:
            raise CocosegError(
                f"{run.checkpoint}: its optimizer does not fit ({error}); keep finetune.encoder_lr and "
                "optimizer.weight_decay as they were"
            ) from error
    return module


def build_trainer(config: Config, run: Run, callbacks: list[L.Callback]) -> L.Trainer:
    """Build the trainer.

    Raises:
        CocosegError: the settings don't make a trainer.
    """
    settings = resolve_precision(trainer_settings(config, run.budget))
    plugins = [build(node, "trainer.plugins") for node in settings.pop("plugins", None) or []]
    if config.trainer.get("profiler") == "simple":
        settings["profiler"] = ShortProfiler()
    return build(
        settings,
        "trainer",
        default_root_dir=run.folder,
        callbacks=callbacks,
        plugins=[*plugins, WholeCheckpointIO(run.budget)],
        logger=build_loggers(config.logger or {}, run.folder),
    )


def build_loggers(nodes: dict[str, Any], folder: Path) -> list[Logger]:
    """Build the loggers, or raise CocosegError; the run folder is their `save_dir` where they take one."""
    loggers = []
    for name, node in {"": nodes}.items() if "_target_" in nodes else nodes.items():
        key = f"logger.{name}".rstrip(".")
        if isinstance(node, dict) and "save_dir" in parameters_of(str(node.get("_target_")), key):
            node = {"save_dir": folder, **node}
        loggers += [build(node, key, kind=Logger)] if node is not None else []
    return loggers


@contextmanager
def open_loggers(loggers: Sequence[Logger]) -> Iterator[None]:
    """Open services and files of the loggers as `fit` would, or raise CocosegError.

    At the end of the block, runs of Weights & Biases that began here are finished: the next job of a sweep
    would go on with them. A run that the user began before goes on.
    """
    with ExitStack() as begun:
        # Files last, so that a service that refuses leaves the run folder as it was.
        for logger in sorted(loggers, key=lambda one: isinstance(one, CSVLogger | TensorBoardLogger)):
            earlier = getattr(sys.modules.get("wandb"), "run", None)
            try:
                experiment = getattr(logger, "experiment", None)
            except Exception as error:  # a key that is missing, a service out of reach
                name = type(logger).__name__
                raise CocosegError(f"logger: {name} can't begin: {reason_of(error)}") from error
            if isinstance(logger, WandbLogger) and experiment is not earlier:
                begun.push(partial(_finish, experiment))
        yield


def _finish(experiment: Any, error: type[BaseException] | None, *_: Any) -> None:
    """Finish a run of Weights & Biases, as failed where an error ended the training."""
    try:
        experiment.finish(exit_code=int(error is not None))
    except Exception as failure:
        log.warning("Weights & Biases can't finish its run (%s)", reason_of(failure))


def try_settings(config: Config, run: Run) -> None:
    """Build loss and optimizer once before there are data, or raise CocosegError."""
    build_loss(config, run)
    node = with_fused(config.optimizer or {}, resolve_precision(config.trainer))
    build(node, "optimizer", [nn.Parameter(torch.zeros(1))])


def try_parts(trainer: L.Trainer, module: SegmentationModule, data: SegmentationDataModule) -> None:
    """Try the loss, and a custom network, on blank input, and find the batch size if it is `auto`.

    Raises:
        CocosegError: the loss returns no scalar, the network no logits, or `auto` is for several devices.
    """
    try_loss(module.loss, (data.config.loss or {})["_target_"], len(data.labels))
    if not is_built_in(data.config.model):
        images = min(data.batch_size or 2, 2)  # two are enough
        module.to(trainer.strategy.root_device)
        shape = images, *module.spec.image_size
        try_network(module.net, module.spec.network["_target_"], shape, len(data.labels))
    if not data.batch_size:
        data.batch_size = largest_batch(module, len(data.train_set), trainer)


def build_loss(config: Config, run: Run, data: SegmentationDataModule | None = None) -> nn.Module:
    """Build the loss, with class weights from the training masks where it asks for them.

    A custom loss gets the keys of our loss presets only where the user typed or changed them.

    Args:
        data: None to try the settings, with weights for two classes.
    """
    node = dict(config.loss or {})
    if not str(node.get("_target_")).startswith("cocoseg."):
        typed = set(map(key_of, run.command.overrides))
        presets = map(read_yaml, (conf_folder() / "loss").glob("*.yaml"))
        for key, value in (item for preset in presets for item in preset.items()):
            if node.get(key) == value and f"loss.{key}" not in typed:
                del node[key]
    rule = node.get("class_weights")
    if isinstance(rule, str):
        weights = [1.0, 1.0] if data is None else class_weights(data.train_set.class_counts())
        node["class_weights"] = None if rule == "none" else weights
    return build(node, "loss")
