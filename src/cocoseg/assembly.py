"""Network, loss and optimizer, as a configuration names them."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cocoseg.balance import class_weights
from cocoseg.cli import build
from cocoseg.config import Config
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.device import in_channels_last
from cocoseg.finetuning import encoder_of, slowed
from cocoseg.module import SegmentationModule
from cocoseg.networks import arguments_of
from cocoseg.optimizer import decayed, with_fused
from cocoseg.pretrained import Pretrained
from cocoseg.spec import ModelSpec


def make_module(
    config: Config,
    data: SegmentationDataModule,
    settings: dict[str, Any],
    pretrained: Pretrained | None = None,
) -> SegmentationModule:
    """The network, the loss and the optimizer that `config` names, for the classes of the data."""
    network = arguments_of(config.model, len(data.labels))
    node = with_fused(config.optimizer, settings)
    net = in_channels_last(build(network, "model"))
    if pretrained is not None:
        pretrained.load_into(net, data.labels)
    finetune = config.finetune
    encoder = encoder_of(net) if finetune.frozen or finetune.encoder_lr != 1 else None

    def optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        groups = decayed(node, parameters)
        if finetune.encoder_lr != 1:
            groups = slowed(groups, encoder, finetune.encoder_lr * node["lr"])
        return build(node, "optimizer", groups)

    return SegmentationModule(
        net=net,
        loss=make_loss(config, data),
        optimizer=optimizer,
        spec=ModelSpec(network, data.labels, tuple(config.data.image_size)),
    )


def make_loss(config: Config, data: SegmentationDataModule) -> nn.Module:
    """The loss that `config` names, with the class weights that its rule gives for the training masks."""
    node = config.loss
    rule = node.get("class_weights") if isinstance(node, dict) else None
    if isinstance(rule, str):
        weights = None if rule == "none" else class_weights(rule, data.class_counts())
        node = {**node, "class_weights": weights}
    return build(node, "loss")
