"""Network, loss and trainer, as a configuration names them."""

from typing import Any, NamedTuple

import lightning as L
from torch import nn

from cocoseg import distributed
from cocoseg.budget.pacing import trainer_settings
from cocoseg.budget.run import Run
from cocoseg.cli import build
from cocoseg.config import AUTO, Config
from cocoseg.data.class_balance import class_weights
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.networks.custom import arguments_of, is_own, probe
from cocoseg.networks.device import resolve_precision, to_channels_last
from cocoseg.networks.model_file import read_checkpoint
from cocoseg.networks.pretrained import Pretrained, read_pretrained
from cocoseg.networks.spec import ModelSpec
from cocoseg.training.batch_size import largest_batch
from cocoseg.training.checkpoints import WholeCheckpointIO
from cocoseg.training.module import SegmentationModule
from cocoseg.training.optimizer import optimizer_of, require_same_groups


class Start(NamedTuple):
    """Weights that a training starts from.

    Attributes:
        checkpoint: content of the checkpoint that is resumed, or None.
        pretrained: weights that a new run begins with, or None.
    """

    checkpoint: dict[str, Any] | None
    pretrained: Pretrained | None


def read_start(config: Config, run: Run) -> Start:
    """Read the checkpoint or the weights to start from, and check what can be checked without data.

    Raises:
        CocosegError: a file can't be read, or the network has no argument of a name.
    """
    arguments_of(config.model)
    if run.checkpoint is None:
        return Start(None, _read_pretrained_once(config))
    checkpoint = read_checkpoint(run.checkpoint)
    run.budget.resume(checkpoint.get("budget"))
    return Start(checkpoint, None)


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
    net = to_channels_last(build(network, "model"))
    if start.pretrained is not None:
        start.pretrained.load_into(net, data.labels)
    optimizer = optimizer_of(config, net, resolve_precision(trainer_settings(config, run.budget)))
    spec = ModelSpec(network, data.labels, tuple(config.data.image_size))
    module = SegmentationModule(net=net, loss=build_loss(config, data), optimizer=optimizer, spec=spec)
    if start.checkpoint is not None:
        spec.require_same(start.checkpoint["spec"], where=run.checkpoint)
        state = start.checkpoint["optimizer_states"][0]
        require_same_groups(module.configure_optimizers(), state, where=run.checkpoint)
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
    trainer = build(
        resolve_precision(trainer_settings(config, run.budget)),
        "trainer",
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
    """Build the loss, with class weights by its rule from the training masks."""
    node = config.loss
    rule = node.get("class_weights") if isinstance(node, dict) else None
    if isinstance(rule, str):
        weights = None if rule == "none" else class_weights(rule, data.class_counts())
        node = {**node, "class_weights": weights}
    return build(node, "loss")
