"""Networks of whatever origin: how they are told the classes, and what is said of those that don't fit."""

import pytest
import torch
import yaml
from torch import nn

from cocoseg.errors import CocosegError
from cocoseg.files import read_yaml
from cocoseg.networks.custom import arguments_of, describe, is_built_in, try_network
from cocoseg.networks.model_file import NETWORKS
from conftest import ROOT
from tiny import LABELS, Reads

OWN = {"_target_": "cocoseg.UNet", "base_channels": 4, "weights": "a.pth", "weights_part": "body"}


def takes_classes(classes: int, width: int = 1) -> None: ...
def takes_both(classes: list[str], num_classes: int) -> None: ...
def takes_anything(**options: object) -> None: ...
def takes_neither(width: int = 1) -> None: ...


def test_what_is_of_training_is_no_argument_of_our_networks():
    assert is_built_in(OWN)
    assert arguments_of(OWN, 3) == {
        "_target_": "cocoseg.UNet",
        "base_channels": 4,
        "num_classes": 3,
    }
    assert "num_classes" not in arguments_of(OWN)


@pytest.mark.parametrize("preset", ["unet", "unet_residual", "unet_timm"])
def test_a_network_is_described_as_the_configuration_that_builds_it(preset):
    node = read_yaml(ROOT / "conf" / "model" / f"{preset}.yaml")
    expected = arguments_of({**node, "dropout": 0.25}, 3)
    kind = NETWORKS[node["_target_"]]
    with torch.device("meta"):
        net = kind(**{key: value for key, value in expected.items() if key != "_target_"})
    assert describe(net) == expected


def test_of_a_custom_network_only_the_class_is_known():
    assert describe(Reads()) == {"_target_": "tiny.Reads"}


def test_a_default_that_earlier_versions_lack_is_not_passed_to_other_networks():
    others = {"_target_": "test_networks.takes_anything"}
    assert arguments_of({**others, "standardize": False}, 3) == {**others, "num_classes": 3}
    assert arguments_of({**OWN, "standardize": False}, 3)["standardize"] is False


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("torchvision.models.segmentation.deeplabv3_resnet50", "num_classes"),
        ("test_networks.takes_classes", "classes"),
        ("test_networks.takes_both", "num_classes"),
        ("test_networks.takes_anything", "num_classes"),
    ],
)
def test_the_number_of_classes_has_the_name_that_the_target_gives_it(name, argument):
    assert not is_built_in({"_target_": name})
    assert arguments_of({"_target_": name, "_convert_": "all"}, 7) == {
        "_target_": name,
        "_convert_": "all",
        argument: 7,
    }


def test_weights_of_others_are_theirs():
    node = {"_target_": "torchvision.models.segmentation.deeplabv3_resnet50", "weights": None}
    assert arguments_of(node, 2) == {**node, "num_classes": 2}


def test_defaults_of_ours_are_not_told_to_networks_of_others():
    """Only `_target_` is typed then; the rest is the default preset, conf/model/unet.yaml."""
    preset = yaml.safe_load((ROOT / "conf" / "model" / "unet.yaml").read_text())
    node = {**preset, "_target_": "test_networks.takes_classes"}
    assert arguments_of(node, 2) == {"_target_": node["_target_"], "classes": 2}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, r"^model: no _target_"),
        ({"width": 3}, r"^model: no _target_"),
        ({"_target_": "no_such.Net"}, r"^model: no_such\.Net can't be imported .*no_such.*PYTHONPATH"),
        ({"_target_": "torch.nn.NoSuch"}, r"^model: torch\.nn\.NoSuch"),
        ({"_target_": "cocoseg.UNett"}, r"^model: cocoseg\.UNett can't be imported"),
        ({"_target_": "cocoseg.networks.unet.torch"}, r"^model: cocoseg\..*unet\.torch"),
        ({"_target_": "a b"}, r"^model: a b"),
        (
            {"_target_": "test_networks.takes_neither"},
            r"^model: .*neither an argument num_classes nor classes",
        ),
        (
            {"_target_": "test_networks.takes_classes", "depth": 3},
            r"^model\.depth: test_networks\.takes_classes has no such .*: '~model\.depth'$",
        ),
        (
            {"_target_": "test_networks.takes_classes", "depth": 3, "width": 1, "dropout": 0.1},
            r"^model\.depth, model\.dropout: .*: '~model\.depth' '~model\.dropout'$",
        ),
        (
            {"_target_": "test_networks.takes_classes", "weights": "a.pth"},
            r"^model\.weights: .*: '~model\.weights'$",
        ),
    ],
)
def test_what_is_wrong_is_said(node, message):
    with pytest.raises(CocosegError, match=message):
        arguments_of(node, 3)


class Returns(Reads):
    """A network whose output is made of its logits by a function, in training and in evaluation."""

    def __init__(self, make, make_in_evaluation=None):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.make, self.make_in_evaluation = make, make_in_evaluation or make

    def forward(self, image):
        logits = super().forward(self.norm(image))
        return (self.make if self.training else self.make_in_evaluation)(logits)


def probed(net: nn.Module, images: int = 2) -> None:
    try_network(net, "my.Net", (images, 16, 24), len(LABELS))


@pytest.mark.parametrize(
    "make",
    [
        lambda logits: logits,
        lambda logits: {"out": logits},
        lambda logits: {"out": logits, "aux": logits[..., ::2, ::2]},
    ],
)
def test_what_fits_passes_and_is_left_as_it_was(make):
    net = Returns(make)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()

    probed(net)

    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not net.training


def test_a_list_of_auxiliary_logits_is_refused():
    with pytest.raises(CocosegError, match=r"^model: my\.Net returns `aux` that is no tensor"):
        probed(Returns(lambda logits: {"out": logits, "aux": [logits]}))


def fail(logits):
    raise RuntimeError("height and width\nmust be divisible by 32")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: (x, x), r"returns a tuple; it must return logits \(2, 3, 16, 24\)"),
        (lambda x: None, r"returns a NoneType; "),
        (
            lambda x: x[:, :2],
            r"returns \(2, 2, 16, 24\) of torch\.float32; it must return logits \(2, 3, 16, 24\)",
        ),
        (lambda x: x[..., ::4, ::4], r"returns \(2, 3, 4, 6\) of torch\.float32; "),
        (lambda x: x.argmax(1), r"returns \(2, 16, 24\) of torch\.int64; "),
        (lambda x: x.long(), r"returns \(2, 3, 16, 24\) of torch\.int64; "),
        (lambda x: {"logits": x}, r"returns a dict; .* as `out`"),
        (lambda x: {"out": [x]}, r"returns a dict; .* as `out`"),
        (fail, r"fails on images \(2, 3, 16, 24\): height and width must be divisible by 32$"),
    ],
)
def test_what_does_not_fit_is_one_line(make, message):
    with pytest.raises(CocosegError, match=f"^model: my.Net {message}"):
        probed(Returns(make))
    with pytest.raises(CocosegError, match=f"^model: my.Net {message}"):
        probed(Returns(lambda x: x, make))


def test_a_batch_of_one_is_tried_where_there_is_no_other():
    with pytest.raises(CocosegError, match=r"fails on images \(1, 3, 16, 24\): too few"):
        probed(Returns(lambda x: x if len(x) > 1 else fail_with("too few")), images=1)


def fail_with(message):
    raise ValueError(message)


def test_memory_that_runs_out_is_no_mistake():
    def greedy(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        probed(Returns(greedy))
