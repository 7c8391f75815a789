import pytest
import torch

from cocoseg.errors import CocosegError
from cocoseg.training.optimizer import MIXED, parameter_groups, with_fused
from tiny import tiny_unet

ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-3}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_fused(name):
    node = {"_target_": f"torch.optim.{name}", "lr": 0.1}
    assert with_fused(node, {}) == {**node, "fused": True}
    assert "fused" not in node


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ({"_target_": "torch.optim.RMSprop"}, {}),
        ({"_target_": "my.Adam"}, {}),
        ({**ADAM, "fused": False}, {}),
        ({**ADAM, "foreach": True}, {}),
        *((ADAM, {"precision": name, "gradient_clip_val": 1.0}) for name in MIXED),
    ],
)
def test_not_fused(node, settings):
    assert with_fused(node, settings) == node


def test_a_fused_step_is_kept_where_nothing_is_clipped():
    assert with_fused(ADAM, {"precision": "bf16-mixed", "gradient_clip_val": None})["fused"]
    assert with_fused(ADAM, {"precision": "32-true", "gradient_clip_val": 1.0})["fused"]


def test_a_fused_step_is_refused_where_it_can_not_follow_clipping():
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
    with pytest.raises(CocosegError, match=r"^optimizer\.fused=true: .* leave out optimizer\.fused$"):
        with_fused({**ADAM, "fused": True}, settings)


def test_biases_and_norms_do_not_decay():
    net = tiny_unet()
    groups = parameter_groups({**ADAM, "weight_decay": 0.1}, net.parameters())
    weights, others = (group["params"] for group in groups)
    assert {id(p) for p in weights} == {
        id(layer.weight)
        for layer in net.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    }
    assert len(weights) + len(others) == len(list(net.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("node", [ADAM, {**ADAM, "weight_decay": 0.0}])
def test_one_group_where_nothing_decays(node):
    parameters = list(tiny_unet().parameters())
    (group,) = parameter_groups(node, iter(parameters))
    assert group.keys() == {"params"}
    assert all(a is b for a, b in zip(group["params"], parameters, strict=True))


def test_a_group_that_would_be_empty_is_left_out():
    layer = torch.nn.Conv2d(3, 3, 1, bias=False)
    assert len(parameter_groups({**ADAM, "weight_decay": 0.1}, layer.parameters())) == 1
