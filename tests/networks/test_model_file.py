import copy
import resource
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cocoseg.errors import CocosegError
from cocoseg.inference.model import load_model
from cocoseg.labels import LabelClass, LabelMap
from cocoseg.networks.model_file import (
    load_network,
    read_checkpoint,
    read_weights,
    save_model,
    without_weights,
)
from cocoseg.networks.spec import MEAN, STD, ModelSpec
from tiny import LABELS, NETWORK, SPEC, Reads, loader, random_batch, tiny_module, tiny_trainer, tiny_unet

ENCODER = {"_target_": "cocoseg.TimmUNet", "num_classes": 3}
SCORES = {"iou": [0.5, None, 0.25], "miou": 0.25, "miou_with_background": 0.375, "pixel_accuracy": 0.75}


def trained_a_little():
    """A network whose running statistics have left their starting values."""
    net = tiny_unet()
    for seed in range(3):
        net(random_batch(seed=seed)[0])
    return net.eval()


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "segmentation_model.pth"
    save_model(path, trained_a_little().state_dict(), SPEC, SCORES)
    return path


def altered(path: Path, **changes: object) -> Path:
    """The file with some of its entries replaced."""
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    return path


def test_a_model_comes_back_as_it_was(model_file):
    net, image = trained_a_little(), random_batch()[0]

    model = load_model(model_file)

    assert torch.equal(model(image), net(image))
    assert not torch.equal(model(image), tiny_unet().eval()(image))
    assert (model.labels, model.image_size, model.scores) == (LABELS, (16, 16), SCORES)
    assert not any(module.training for module in model.modules())


def test_the_file_is_plain_values_and_says_what_it_is(model_file):
    content = torch.load(model_file, weights_only=True)

    assert content["format"] == 1
    assert content["network"] == NETWORK
    assert [c["name"] for c in content["labels"]["classes"]] == ["background", "cat", "dog"]
    assert content["image_size"] == [16, 16]
    assert content["normalization"] == {"mean": list(MEAN), "std": list(STD)}
    assert content["scores"] == SCORES
    assert content["versions"]["torch"] == torch.__version__


def test_a_failed_write_leaves_the_old_file(model_file, monkeypatch):
    before = model_file.read_bytes()

    def break_off(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", break_off)

    with pytest.raises(KeyboardInterrupt):
        save_model(model_file, {}, SPEC, None)

    assert model_file.read_bytes() == before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_a_checkpoint_loads_too(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    module = tiny_module()
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    image = random_batch(seed=2)[0]

    model = load_model(tmp_path / "last.ckpt")

    assert torch.equal(model(image), module.net.eval()(image))
    assert (model.labels, model.scores) == (LABELS, module.scores.to_dict())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", "ab", r"got `str` - at `\$\.image_size`"),
        ("image_size", [0, -5], r"at `\$\.image_size\[0\]`"),
        ("image_size", [16, 16.5], r"got `float` - at `\$\.image_size\[1\]`"),
        ("network", "UNet", r"got `str` - at `\$\.network`"),
        ("labels", {"classes": 3}, r"got `int` - at `\$\.labels\.classes`"),
        ("labels", {}, "missing required field `classes`"),
        ("labels", {"classes": LABELS.to_dict()["classes"][:1]}, r"length >= 2 - at `\$\.labels\.classes`"),
        ("labels", {"classes": LABELS.to_dict()["classes"][:2]}, "2 labels for a network of 3 classes"),
    ],
    ids=str,
)
def test_a_file_of_odd_values_is_refused(tmp_path, key, value, message):
    content = {"format": 1, "state_dict": tiny_unet().state_dict(), **SPEC.to_dict(), "scores": None}
    torch.save({**content, key: value}, tmp_path / "model.pth")
    with pytest.raises(CocosegError, match=rf"model\.pth: .*{message}"):
        load_model(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "change", [{"color": ["x", 1, 2]}, {"color": [256, 0, 0]}, {"name": 7}, {"category_ids": ["a"]}], ids=str
)
def test_odd_labels_are_refused(tmp_path, change):
    labels = LABELS.to_dict()
    labels["classes"][1] |= change
    content = {"format": 1, "state_dict": tiny_unet().state_dict(), **SPEC.to_dict(), "scores": None}
    torch.save({**content, "labels": labels}, tmp_path / "model.pth")
    with pytest.raises(CocosegError, match=r"at `\$\.labels\.classes\[1\]"):
        load_model(tmp_path / "model.pth")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("legacy", "message"), [(False, "would run code"), (True, "damaged or no torch file")]
)
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, legacy, message):
    harm, path = tmp_path / "harm", tmp_path / "model.pth"
    torch.save({"labels": Malicious(harm)}, path, _use_new_zipfile_serialization=not legacy)

    with pytest.raises(CocosegError, match=rf"model\.pth: .*{message}"):
        load_model(path)

    assert not harm.exists()
    torch.load(path, weights_only=False)
    assert harm.exists()  # it would have


def test_a_missing_file(tmp_path):
    with pytest.raises(CocosegError, match=r"none\.pth: no such file"):
        load_model(tmp_path / "none.pth")


def test_a_folder(tmp_path):
    with pytest.raises(CocosegError, match="not a model or checkpoint"):
        load_model(tmp_path)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file(model_file, part):
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(part * len(content))])

    with pytest.raises(CocosegError, match="damaged or no torch file"):
        load_model(model_file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"a": 1}',
        b"class,iou\ncat,1\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        b".",  # to pickle: the end, with nothing to return
        b"\x80\x02G[",  # a pickle that breaks off inside a number
        bytes(1000),
    ],
    ids=["empty", "json", "csv", "png", "dot", "half a pickle", "zeros"],
)
def test_a_file_that_is_something_else(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)

    with pytest.raises(CocosegError, match=r"model\.pth: .*damaged or no torch file"):
        load_model(path)


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], None, 7, "text", torch.zeros(3), {"weight": torch.zeros(3)}, {"state_dict": {}}],
    ids=["dict", "list", "none", "number", "string", "tensor", "state dict", "checkpoint"],
)
def test_a_torch_file_that_is_not_ours(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")

    with pytest.raises(CocosegError, match=r"model\.pth: not a model or checkpoint of this program"):
        load_model(tmp_path / "model.pth")


def test_a_checkpoint_of_another_lightning_program(tmp_path):
    torch.save({"pytorch-lightning_version": "2.6.4", "state_dict": {}, "epoch": 1}, tmp_path / "a.ckpt")

    with pytest.raises(CocosegError, match=r"a\.ckpt: not a model or checkpoint of this program"):
        read_weights(tmp_path / "a.ckpt")


def test_a_network_of_others_must_be_passed(tmp_path):
    path = tmp_path / "model.pth"
    net = Reads().eval()
    foreign = ModelSpec({"_target_": "tiny.Reads", "num_classes": 3}, LABELS, (16, 16))
    save_model(path, net.state_dict(), foreign, None)
    image = random_batch()[0]

    with pytest.raises(CocosegError, match=r"model\.pth: holds weights of tiny\.Reads.* net="):
        load_model(path)

    other = Reads()
    nn.init.zeros_(other.weight)
    assert torch.equal(load_model(path, net=other)(image), net(image))


def test_a_name_in_a_file_is_never_imported(model_file):
    altered(model_file, network={**NETWORK, "_target_": "this.would.fail"})

    with pytest.raises(CocosegError, match=r"holds weights of this\.would\.fail"):
        load_model(model_file)


@pytest.mark.parametrize(
    "change",
    [{"base_channels": 8}, {"depth": 3}, {"num_classes": 4}, {"depth": 0}, {"unheard_of": 1}],
    ids=str,
)
def test_weights_that_do_not_fit_the_network_named(model_file, change):
    altered(model_file, network={**NETWORK, **change})

    with pytest.raises(CocosegError, match=r"segmentation_model\.pth: "):
        load_model(model_file)


def shared(depth: int) -> list:
    """2^depth values in a few bytes."""
    value = ["x", "x"]
    for _ in range(depth):
        value = [value, value]
    return value


HOSTILE = {
    "a network of a million channels": {"network": {**NETWORK, "base_channels": 10**6}},
    "a network far larger than the file": {"network": {**NETWORK, "base_channels": 2**14, "depth": 6}},
    "endless levels": {"network": {**NETWORK, "depth": 10**9}},
    "endless blocks": {"network": {**NETWORK, "_target_": "cocoseg.ResidualUNet", "blocks": 10**9}},
    "an encoder from elsewhere": {"network": ENCODER | {"encoder": "hf-hub:someone/something"}},
    "an encoder of a long name": {"network": ENCODER | {"encoder": "x" * 10**6}},
    "a decoder of many levels": {"network": ENCODER | {"decoder_channels": [8] * 10**5}},
    "an argument without end": {"network": {**NETWORK, "depth": shared(60)}},
    "a number without end": {"network": {**NETWORK, "depth": 10**5000}},
    "half a letter": {"license": "\ud800"},
    "scores without end": {"scores": shared(60)},
    "weights in a list": {"state_dict": [1, 2]},
    "weights that are numbers": {"state_dict": {"head.weight": 1.0}},
    "weights without names": {"state_dict": {1: torch.zeros(1)}},
    "weights larger than the file": {"state_dict": {"head.weight": torch.zeros(1).expand(10**12)}},
    "sparse weights": {"state_dict": {"head.weight": torch.zeros(2, 2).to_sparse()}},
    "an image size without end": {"image_size": [10**30, 16]},
    "a format that is a tensor": {"format": torch.zeros(2)},
    "a format that is a list": {"format": shared(60)},
    "more classes than a mask has room for": {
        "network": {**NETWORK, "num_classes": 300},
        "labels": {"classes": [{"category_ids": [i], "name": "x", "color": [0, 0, 0]} for i in range(300)]},
    },
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_asks_for_more_than_it_holds(model_file, change):
    path = altered(model_file, **change)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CocosegError, match=r"segmentation_model\.pth: ") as error:
        load_model(path)
    assert len(str(error.value)) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 500_000  # kB


@pytest.mark.timeout(120)
def test_a_compressed_file_is_refused(model_file):
    """torch would unpack it: here a thousand bytes for each."""
    with zipfile.ZipFile(model_file) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(model_file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(2**26) if name.endswith("data/0") else content)
    with pytest.raises(CocosegError, match="damaged or no torch file"):
        load_model(model_file)


def test_the_end_of_an_archive_makes_no_archive(model_file):
    """Python's zipfile looks at a file's end, torch at its beginning."""
    content = torch.load(model_file, weights_only=True)
    torch.save({**content, "scores": bytearray(9)}, model_file, _use_new_zipfile_serialization=False)
    with model_file.open("ab") as file:
        file.write(b"PK\5\6" + bytes(18))
    with pytest.raises(CocosegError, match="damaged or no torch file"):
        load_model(model_file)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_function_makes_much_of_a_few_bytes(model_file, legacy):
    content = torch.load(model_file, weights_only=True)
    torch.save({**content, "scores": bytearray(9)}, model_file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CocosegError, match="damaged or no torch file"):
        load_model(model_file)


def test_image_size_and_colors_are_no_difference():
    recolored = LabelMap((*LABELS.classes[:2], LabelClass((5,), "dog", (1, 2, 3))))
    for spec in (
        ModelSpec.from_dict(copy.deepcopy(SPEC.to_dict())),
        ModelSpec(NETWORK, recolored, (224, 224)),
    ):
        SPEC.require_same(spec, where="a.ckpt")


def test_arguments_that_earlier_files_lack_have_their_defaults():
    replace(SPEC, network={**NETWORK, "standardize": False}).require_same(SPEC, where="a.ckpt")
    newer = replace(SPEC, network={**NETWORK, "standardize": True})
    with pytest.raises(CocosegError, match=r"model\.standardize is False there and True here"):
        newer.require_same(SPEC, where="a.ckpt")


@pytest.mark.parametrize(
    ("found", "here", "key"),
    [({"base_channels": 32}, 4, "base_channels"), ({"depth": 3}, 2, "depth")],
)
def test_another_network_is_refused_with_both_named(found, here, key):
    other = ModelSpec({**NETWORK, **found}, LABELS, (16, 16))

    with pytest.raises(
        CocosegError, match=rf"^a\.ckpt: .*model\.{key} is {found[key]} there and {here} here"
    ):
        SPEC.require_same(other, where="a.ckpt")


def test_other_labels_are_refused_with_both_named():
    fewer = LabelMap(LABELS.classes[:2])
    renamed = LabelMap((*LABELS.classes[:2], LabelClass((5,), "wolf", (0, 0, 255))))
    renumbered = LabelMap((*LABELS.classes[:2], LabelClass((6,), "dog", (0, 0, 255))))

    for labels, message in (
        (fewer, r"1 classes against 2"),
        (renamed, r"'wolf' \(id 5\) against 'dog' \(id 5\)"),
        (renumbered, r"'dog' \(id 6\) against 'dog' \(id 5\)"),
    ):
        with pytest.raises(CocosegError, match=rf"^a\.ckpt: .*other labels.*{message}"):
            SPEC.require_same(ModelSpec(NETWORK, labels, (16, 16)), where="a.ckpt")


def test_pixels_of_other_bits_are_refused():
    here = replace(SPEC, bits=12)
    here.require_same(here, where="a.ckpt")
    replace(SPEC, bits=16).require_same(SPEC, where="a.ckpt")  # as versions before scaled them
    for found, bits in ((SPEC, 16), (replace(SPEC, bits=14), 14)):
        with pytest.raises(
            CocosegError, match=rf"^a\.ckpt: trained on pixels of {bits} bits, .*data\.bits={bits}"
        ):
            here.require_same(found, where="a.ckpt")


def test_a_later_format_is_refused(model_file):
    content = torch.load(model_file, weights_only=True)
    torch.save({**content, "format": 2}, model_file)

    with pytest.raises(CocosegError, match="format 2"):
        load_model(model_file)


def test_a_checkpoint_without_its_optimizer_is_not_resumed(tmp_path):
    """As ModelCheckpoint(save_weights_only=True) writes them."""
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(tiny_module(), loader(random_batch()), loader(random_batch(seed=1)))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(CocosegError, match=r"^ckpt_path: .*a\.ckpt .*saved without its optimizer"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("given", [{"encoder_weights": "imagenet"}, {}], ids=str)
def test_a_network_of_others_fetches_no_weights(given, tmp_path):
    """They would be overwritten, and without a network loading would fail."""

    class Net(nn.Conv2d):
        def __init__(self, classes: int, encoder_weights: str | None = "imagenet"):
            assert encoder_weights is None
            super().__init__(3, classes, kernel_size=1)

    network = {"_target_": "smp.Unet", "classes": 3, **given}
    spec = ModelSpec(network, LABELS, (16, 16))
    net = Net(3, None)
    save_model(tmp_path / "a.pth", net.state_dict(), spec, None)

    loaded, found, _ = load_network(tmp_path / "a.pth", Net)

    assert torch.equal(loaded.weight, net.weight)
    assert found.network == network


def test_no_weights_are_fetched_where_a_run_is_resumed():
    name = "torchvision.models.segmentation.deeplabv3_resnet50"
    network = {"_target_": name, "num_classes": 3}
    assert without_weights(network) == {**network, "weights": None, "weights_backbone": None}
    assert without_weights({"_target_": "cocoseg.UNet", "depth": 2}) == {
        "_target_": "cocoseg.UNet",
        "depth": 2,
    }


def test_the_license_of_the_weights_is_kept(tmp_path):
    spec = replace(SPEC, license="cc-by-nc-4.0")
    save_model(tmp_path / "a.pth", tiny_unet().state_dict(), spec, None)
    assert load_network(tmp_path / "a.pth")[1].license == "cc-by-nc-4.0"
