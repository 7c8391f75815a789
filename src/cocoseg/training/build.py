"""Network, loss and trainer, as a configuration names them."""

from typing import Any

import lightning as L
import torch
from torch import nn

from cocoseg import distributed
from cocoseg.budget.open_run import Run
from cocoseg.budget.pacing import trainer_settings
from cocoseg.cli import build
from cocoseg.config import AUTO, Config
from cocoseg.data.class_balance import class_weights
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError
from cocoseg.networks.custom import arguments_of, is_own, probe
from cocoseg.networks.device import resolve_precision
from cocoseg.networks.model_file import read_checkpoint, without_weights
from cocoseg.networks.pretrained import Pretrained, read_pretrained
from cocoseg.training.batch_size import largest_batch
from cocoseg.training.checkpoints import WholeCheckpointIO
from cocoseg.training.console import ShortProfiler
from cocoseg.training.module import SegmentationModule
from cocoseg.training.optimizer import optimizer_of

Start = dict[str, Any] | Pretrained | None  # the checkpoint that is resumed, or weights to begin with


def read_start(config: Config, run: Run) -> Start:
    """Read the checkpoint that is resumed, or the weights that a new run begins with, if there are any.

    Raises:
        CocosegError: a file can't be read, or the network has no argument of a name.
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
        CocosegError: the checkpoint to resume has another network, other labels or other groups of weights.
    """
    network = arguments_of(config.model, len(data.labels))
    is_resumed = isinstance(start, dict)
    net = build(without_weights(network) if is_resumed else network, "model")
    net = net.to(memory_format=torch.channels_last)
    license = start["spec"].license if is_resumed else None
    if isinstance(start, Pretrained):
        start.load_into(net, data.labels)
        license = start.license
    optimizer = optimizer_of(config, net, resolve_precision(trainer_settings(config, run.budget)))
    spec = data.describe(network, license)
    module = SegmentationModule(net, loss=build_loss(config, data), optimizer=optimizer, spec=spec)
    if is_resumed:
        spec.require_same(start["spec"], where=run.checkpoint)
        try:
            for state in start["optimizer_states"]:
                module.configure_optimizers().load_state_dict(state)
        except ValueError as error:
            raise CocosegError(
                f"{run.checkpoint}: its optimizer does not fit ({error}); keep finetune.encoder_lr and "
                "optimizer.weight_decay as they were"
            ) from error
    return module


def build_trainer(
    config: Config,
    run: Run,
    callbacks: list[L.Callback],
    module: SegmentationModule,
    data: SegmentationDataModule,
) -> L.Trainer:
    """Build the trainer; try a custom network out with it, and find the batch size if it is `auto`.

    Raises:
        CocosegError: the settings don't make a trainer, or the network does not return logits.
    """
    is_simple = config.trainer.get("profiler") == "simple"
    trainer = build(
        resolve_precision(trainer_settings(config, run.budget)),
        "trainer",
        **({"profiler": ShortProfiler()} if is_simple else {}),
        default_root_dir=run.folder,
        callbacks=callbacks,
        plugins=[WholeCheckpointIO(run.budget)],
        logger=build(config.logger, "logger", save_dir=run.folder) if config.logger else False,
    )
    if not is_own(config.model):
        images = 2 if data.batch_size == AUTO else min(data.batch_size, 2)  # two are enough
        module.to(trainer.strategy.root_device)
        shape = images, *module.spec.image_size
        probe(module.net, module.spec.network["_target_"], shape, len(data.labels))
    if data.batch_size == AUTO:
        data.batch_size = largest_batch(module, len(data.train_set), trainer)
    return trainer


def build_loss(config: Config, data: SegmentationDataModule) -> nn.Module:
    """Build the loss, with class weights from the training masks where it asks for them."""
    node = config.loss or {}
    rule = node.get("class_weights")
    if isinstance(rule, str):
        weights = None if rule == "none" else class_weights(data.train_set.class_counts())
        node = {**node, "class_weights": weights}
    return build(node, "loss")
