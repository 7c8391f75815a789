"""Files of earlier versions can be read."""

import logging

import pytest
import torch
from torch import nn

from cocoseg.inference.model import load_model
from cocoseg.networks.model_file import save_model
from cocoseg.networks.old_files import drop_deep_supervision
from cocoseg.networks.pretrained import Pretrained
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.spec import ModelSpec
from tiny import LABELS

NETWORK = {"_target_": "cocoseg.ResidualUNet", "num_classes": 3, "base_channels": 2, "depth": 3}


class Supervised(ResidualUNet):
    """The network as it was, with a head for logits at half the size."""

    def __init__(self) -> None:
        super().__init__(3, base_channels=2, depth=3)
        self.aux_heads = nn.ModuleList([nn.Conv2d(4, 3, kernel_size=1)])


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_model_trained_with_deep_supervision_loads_without_its_heads(deep_supervision, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    net = Supervised() if deep_supervision else ResidualUNet(3, base_channels=2, depth=3)
    spec = ModelSpec({**NETWORK, "deep_supervision": deep_supervision}, LABELS, (16, 16))
    save_model(tmp_path / "model.pth", net.state_dict(), spec, None)

    model = load_model(tmp_path / "model.pth")

    image = torch.randn(1, 3, 20, 30)
    assert torch.equal(model(image), net.eval()(image))
    assert [message for message in caplog.messages if "deep_supervision, which is gone" in message] == [
        f"{tmp_path / 'model.pth'}: trained with deep_supervision, which is gone; its extra heads are ignored"
    ] * deep_supervision


def test_arguments_of_other_networks_stay():
    network = {"_target_": "my_nets.Net", "deep_supervision": True}
    assert not drop_deep_supervision(network, {})
    assert network["deep_supervision"]


def test_a_state_dict_with_such_heads_is_something_to_begin_with():
    weights = Supervised().state_dict()
    net = ResidualUNet(3, base_channels=2, depth=3)
    Pretrained("a.pth", weights).load_into(net, LABELS)
    assert torch.equal(net.head.weight, weights["head.weight"])
