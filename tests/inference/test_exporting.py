import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.commands import export as export_main
from cocoseg.commands.export import Settings, parse
from cocoseg.config_cross_checks import check_export
from cocoseg.errors import CocosegError
from cocoseg.inference import torch_export
from cocoseg.inference.export_formats import FORMATS, compare, export_format
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.model import SegmentationModel
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pixels import normalize, resize_images
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from tiny import LABELS, SPEC, Reads, random_batch, tiny_unet


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    """A network that predicts several classes, and whose batch statistics are not the initial ones."""
    net = tiny_unet()
    for seed in range(3):
        net(random_batch(seed=seed)[0])
    with torch.no_grad():
        net.head.bias -= net.eval()(random_batch()[0]).mean((0, 2, 3))
    return SegmentationModel(net, SPEC, None)


@pytest.fixture
def model_file(model: SegmentationModel, tmp_path: Path) -> Path:
    path = tmp_path / "segmentation_model.pth"
    save_model(path, model.net.state_dict(), SPEC, None)
    return path


def pixels(*shape: int, seed: int = 0) -> Tensor:
    """Noise (B, H, W, 3) uint8."""
    return torch.randint(
        0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


# The module around the network


def test_uint8_images_become_classes(model: SegmentationModel) -> None:
    image = pixels(2, 21, 30)
    logits = model(normalize(image.permute(0, 3, 1, 2)))

    classes = Deployed(model)(image)

    assert (classes.dtype, classes.shape) == (torch.uint8, (2, 21, 30))
    assert torch.equal(classes.long(), logits.argmax(1))
    torch.testing.assert_close(Deployed(model, argmax=False)(image), logits)


@pytest.mark.parametrize("size", [(16, 16), (21, 30), (60, 90), (9, 7)], ids=str)
def test_resizes_inside_equal_those_of_predict(size: tuple[int, int]) -> None:
    """Pixels are rounded as torch rounds resized uint8 images. Here they are the logits."""
    image = pixels(2, *size)
    small = normalize(resize_images(image.permute(0, 3, 1, 2), SPEC.image_size))
    expected = F.interpolate(small, size, mode="bilinear", align_corners=False)

    logits = Deployed(SegmentationModel(Reads(), SPEC, None), argmax=False, resize=True)(image)

    assert logits.shape == (2, 3, *size)
    assert ((logits - expected).abs() < 1e-4).float().mean() > 0.95


# The files


@pytest.mark.slow
def test_onnx_takes_any_size_and_holds_the_labels(model: SegmentationModel, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    line = export_format("onnx", Deployed(model), tmp_path / "model")
    assert re.fullmatch(r".*/model\.onnx  0\.\d MB; logits within \d\.\de[+-]0\d of PyTorch's", line)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no other file for the weights

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 16, 16), (2, 37, 50), (5, 1, 3), (1, 100, 64)):
        image = pixels(*shape)
        (classes,) = session.run(["classes"], {"image": image.numpy()})
        assert classes.dtype == "uint8"
        logits = Deployed(model).logits(image)
        chosen = logits.gather(1, torch.from_numpy(classes).long().unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(chosen, logits.amax(1))
        assert len(torch.from_numpy(classes).unique()) > 1

    metadata = session.get_modelmeta().custom_metadata_map
    assert [c["name"] for c in json.loads(metadata["labels"])["classes"]] == LABELS.names
    assert json.loads(metadata["image_size"]) == [16, 16]
    assert json.loads(metadata["multiple"]) == 4
    assert metadata["input"] == "(B, H, W, 3) uint8 RGB"


def test_torch_export_takes_multiples(model: SegmentationModel, tmp_path: Path) -> None:
    deployed = Deployed(model, argmax=False)
    export_format("torch_export", deployed, tmp_path / "model")

    extra = {"labels": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert [c["name"] for c in json.loads(extra["labels"])["classes"]] == LABELS.names
    for shape in ((1, 8, 8), (3, 44, 12), (2, 64, 100)):
        image = pixels(*shape)
        torch.testing.assert_close(program(image), deployed(image))
    with pytest.raises(AssertionError, match="Guard failed"):
        program(pixels(1, 30, 32))


@pytest.mark.slow
def test_torch_export_of_a_deep_network(tmp_path: Path) -> None:
    """Heights and widths are multiples of 64, from 128 up."""
    network = {"_target_": "cocoseg.UNet", "num_classes": 3, "base_channels": 1, "depth": 6}
    net = UNet(num_classes=3, base_channels=1, depth=6)
    model = SegmentationModel(net, ModelSpec(network, LABELS, (128, 128)), None)
    export_format("torch_export", Deployed(model), tmp_path / "model")
    assert (tmp_path / "model.pt2").is_file()


def test_a_file_with_other_results_is_not_written(
    model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed, other = Deployed(model), Deployed(SegmentationModel(tiny_unet(seed=1), SPEC, None))

    def write(_: Deployed, path: Path) -> tuple[Deployed, list[Tensor]]:
        path.write_bytes(b"of the other model")
        return other, other.examples()

    monkeypatch.setattr(torch_export, "write", write)
    with pytest.raises(CocosegError, match=r"other results than PyTorch for images"):
        export_format("torch_export", deployed, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_rounding_passes_the_comparison_and_other_differences_do_not(model: SegmentationModel) -> None:
    deployed, images = Deployed(model, argmax=False), [pixels(1, 16, 16), pixels(2, 20, 12, seed=1)]
    most = 1e-3 * max(1.0, *(deployed(image).abs().max().item() for image in images))

    assert compare(deployed, lambda image: deployed(image) + 1e-5, images) == pytest.approx(1e-5, rel=0.1)
    for wrong in (
        lambda image: deployed(image) + 1.1 * most,
        lambda image: deployed(image) * torch.nan,
        lambda image: deployed(image)[..., :-1],
        lambda image: deployed(image)[:1, :, 1:],
    ):
        with pytest.raises(CocosegError, match="other results"):
            compare(deployed, wrong, images)


def test_classes_must_be_those_of_the_largest_logits(model: SegmentationModel) -> None:
    deployed, images = Deployed(model), [pixels(2, 16, 16)]
    assert compare(deployed, deployed, images) == 0
    for wrong in (lambda image: 1 - deployed(image).clamp(max=1), lambda image: deployed(image)[:1]):
        with pytest.raises(CocosegError, match="other results"):
            compare(deployed, wrong, images)


class CantBeTraced(Reads):
    def forward(self, image: Tensor) -> Tensor:
        if type(image) is not Tensor or torch.compiler.is_compiling():
            raise NotImplementedError("not to be traced")
        return super().forward(image)


@pytest.mark.parametrize("name", [pytest.param("onnx", marks=pytest.mark.slow), "torch_export"])
def test_a_network_that_cant_be_exported_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CocosegError, match=f"can't be written as {name} "):
        export_format(name, Deployed(SegmentationModel(CantBeTraced(), SPEC, None)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


class OnlyMultiples(Reads):
    """A custom network that refuses sizes which are no multiples of 32."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] % 32 or image.shape[-2] % 32:
            raise ValueError("multiples of 32, please")
        return super().forward(image)


@pytest.mark.slow
def test_a_network_that_accepts_only_multiples_is_exported(tmp_path: Path) -> None:
    spec = ModelSpec(SPEC.network, LABELS, (64, 96))
    model = SegmentationModel(OnlyMultiples(), spec, None)
    for name in FORMATS:
        export_format(name, Deployed(model), tmp_path / "model")
    assert len(list(tmp_path.iterdir())) == len(FORMATS)


# The command line


def test_a_mistake_on_the_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "checkpoint=none.pth"])
    with pytest.raises(SystemExit) as ended:
        export_main.main()
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: none.pth: no such file\n")


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["export", "--help"])
    export_main.main()
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 24
    assert all(f"\n{key}" in text for key in Settings.__struct_fields__)


@pytest.mark.parametrize(("received", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_export_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, received: str, code: int
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "checkpoint=model.pth"])
    monkeypatch.setattr(export_main, "run", lambda settings: signal.raise_signal(signal.Signals[received]))
    with pytest.raises(SystemExit) as ended:
        export_main.main()
    assert ended.value.code == code


def test_arguments() -> None:
    settings = parse(["checkpoint=a=b c.pth", "formats=[pth, torch_export]", "argmax=False", "output=null"])
    assert (settings.checkpoint, settings.formats) == ("a=b c.pth", ("pth", "torch_export"))
    assert (settings.argmax, settings.output) == (False, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats=onnx"], "missing required field `checkpoint`; the settings are checkpoint, formats, "),
        (["checkpoint=a", "format=onnx"], "unknown field `format`"),
        (["checkpoint=a", "onnx"], "unknown field `onnx`"),
        (["checkpoint=a", "formats=[onnx,tflite]"], "formats: 'tflite' is no format; known: pth, onnx"),
        (["checkpoint=a", "argmax=2"], "Expected `bool`.*argmax"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(CocosegError, match=message):
        parse(arguments)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "cocoseg.config_cross_checks.find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    with pytest.raises(CocosegError, match=r"^export: onnx needs .*; pip install onnxruntime$"):
        check_export(["pth", "onnx"], key="export")
    check_export(["pth", "torch_export"], key="export")


# Models without Lightning and Hydra

WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch, cocoseg
model = cocoseg.load_model({path!r})
print(tuple(model(torch.zeros(1, 3, 20, 30)).shape), model.labels.names)

from cocoseg.commands.export import main
sys.argv = ["export", "checkpoint=" + {path!r}, "formats=torch_export"]
main()
"""
TRAINING = (
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "torchmetrics",
    "pycocotools",
    "torchvision",
)


@pytest.mark.slow
def test_models_are_loaded_and_exported_without_lightning_and_hydra(model_file: Path) -> None:
    program = WITHOUT.format(blocked=TRAINING, path=str(model_file))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("(1, 3, 20, 30) ['background', 'cat', 'dog']\n"), done.stderr
    assert re.search(
        r"segmentation_model\.pt2  0\.\d MB; logits within [\d.e+-]+ of PyTorch's\n$", done.stdout
    )
    assert model_file.with_suffix(".pt2").is_file(), done.stderr
