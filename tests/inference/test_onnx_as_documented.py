"""ONNX files give the masks of `predict`: by the code in docs/using.md, by themselves, and by predict.py.

Most files are written here by hand, for torch takes seconds to write one.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from cocoseg.config import PredictConfig
from cocoseg.errors import CocosegError
from cocoseg.inference.export_formats import export_format
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.onnx_model import OnnxModel, OnnxPredictor
from cocoseg.inference.predict_folder import predict_folder
from cocoseg.inference.predictor import Predictor
from cocoseg.labels import LabelMap
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec
from conftest import ROOT
from tiny import LABELS, NETWORK, Reads, tiny_unet

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (48, 64)  # height and width of the network's input
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "using.md").read_text(), re.DOTALL)
SNIPPET = next(block for block in BLOCKS if "InferenceSession" in block)
SIZES = [(48, 64), (31, 40), (400, 333)]


def colors(height: int, width: int) -> np.ndarray:
    """Colored regions under noise: (h, w, 3) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
    noise = torch.randn(height, width, 3, generator=generator) / 20
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).numpy()


def write_reads(path: Path, **changes: str) -> Path:
    """Write `Reads` as ONNX: its logits are the normalized channels. `changes` replace metadata."""
    deployed = Deployed(SegmentationModel(Reads(), ModelSpec({}, LABELS, SIZE), None), argmax=False)
    shapes = {"image": (onnx.TensorProto.UINT8, [None, None, None, 3]), "logits": (1, [None, 3, None, None])}
    image, logits = (onnx.helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items())
    weights = [
        onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in deployed.named_buffers()
    ]
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["values"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Transpose", ["values"], ["pixels"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "shift"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "reads", [image], [logits], weights)
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(file, deployed.metadata() | changes)
    onnx.save(file, path)
    return path


def predicted(checkpoint: Path, photo: Path, output: Path, **settings: Any) -> np.ndarray:
    """Predict a photograph by predict.py. Returns its mask."""
    usual = {"values": "index", "overlay": False, "gallery": False, "network": "tiny.Reads"}
    config = PredictConfig(checkpoint=str(checkpoint), input=str(photo), **usual | settings)
    predict_folder(config, output)
    with PIL.Image.open(output / "masks/photo.png") as mask:
        return np.asarray(mask)


def run_documented_code() -> dict[str, Any]:
    """Run the code of docs/using.md in the current folder. Returns its variables."""
    variables: dict[str, Any] = {}
    exec(SNIPPET, variables)
    return variables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `Reads` as model.pth and as segmentation_model.onnx, and a photograph."""
    save_model(
        tmp_path / "model.pth", Reads().state_dict(), ModelSpec({"_target_": "Reads"}, LABELS, SIZE), None
    )
    write_reads(tmp_path / "segmentation_model.onnx")
    PIL.Image.fromarray(colors(150, 200)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- masks


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_programs_give_the_same_mask(folder: Path, size: tuple[int, int]) -> None:
    PIL.Image.fromarray(colors(*size)).save("photo.jpg")
    expected = load_model("model.pth", Reads()).predict("photo.jpg")
    assert np.bincount(expected.ravel(), minlength=3).min() > 0.03 * expected.size
    code = run_documented_code()
    for mask in (
        code["mask"],
        predicted(folder / "model.pth", folder / "photo.jpg", folder / "1", precision="32-true"),
        predicted(folder / "segmentation_model.onnx", folder / "photo.jpg", folder / "2"),
    ):
        assert (mask.dtype, mask.shape) == (np.uint8, size)
        assert (mask == expected).mean() >= 0.995
    assert code["names"] == LABELS.names


@pytest.mark.slow
def test_all_programs_give_the_same_mask_of_a_network(folder: Path) -> None:
    """Files that torch writes, with the resizes outside and inside."""
    net = tiny_unet().eval()
    with torch.no_grad():
        net.head.weight *= 30
        image = torch.from_numpy(colors(*SIZE)).permute(2, 0, 1)[None]
        net.head.bias -= net(normalize(image)).mean((0, 2, 3))
    model = SegmentationModel(net, ModelSpec(NETWORK, LABELS, SIZE), None)
    export_format("onnx", Deployed(model, argmax=False), folder / "segmentation_model")
    line = export_format("onnx", Deployed(model, resize=True), folder / "resized")
    assert line.endswith(
        "; resizes inside take 0 MB at 48x64 and 432 MB at 12 megapixels, beside the network"
    )
    export_format("torch_export", Deployed(model, resize=True), folder / "resized")
    session = onnxruntime.InferenceSession(folder / "resized.onnx")
    program = torch.export.load(folder / "resized.pt2").module()
    for size in SIZES:
        PIL.Image.fromarray(colors(*size)).save("photo.jpg")
        pixels = np.asarray(PIL.Image.open("photo.jpg"))[None]
        expected = model.predict("photo.jpg")
        output = folder / str(size)
        for mask in (
            run_documented_code()["mask"],
            session.run(["classes"], {"image": pixels})[0][0],
            program(torch.tensor(pixels))[0].numpy(),
            predicted(folder / "resized.onnx", folder / "photo.jpg", output),
        ):
            assert (mask.dtype, mask.shape) == (np.uint8, size)
            assert (mask == expected).mean() >= 0.995


def test_probabilities_tiles_and_the_mirror_image(folder: Path) -> None:
    settings = {"scale": 1, "tile": [64, 96], "flip": True, "probabilities": "all", "coco_dataset": "rle"}
    found, scores = [], []
    for name in ("model.pth", "segmentation_model.onnx"):
        output = folder / "out" / name
        mask = predicted(folder / name, folder / "photo.jpg", output, **settings)
        with np.load(output / "probabilities/photo.npz") as file:
            found.append(file["probabilities"])
        np.testing.assert_array_equal(found[-1].argmax(0), mask)
        annotations = json.loads((output / "coco_dataset.json").read_bytes())["annotations"]
        largest = max(annotations, key=lambda annotation: annotation["area"])
        inside = coco_mask.decode(largest["segmentation"]).astype(bool)
        scores.append(largest["score"])
        assert scores[-1] == pytest.approx(found[-1].max(0)[inside].mean(), abs=2e-3)
    np.testing.assert_allclose(*found, atol=2e-3)
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_classes_without_scores_are_enlarged_to_the_nearest_neighbor(folder: Path) -> None:
    model, image = OnnxModel("segmentation_model.onnx"), torch.from_numpy(colors(120, 160))
    model.gives_scores = False
    image = image.permute(2, 0, 1)[None]
    small = OnnxPredictor(model)(Predictor(load_model("model.pth", Reads())).resize(image))
    rows, columns = (((torch.arange(new) + 0.5) * old / new).long() for new, old in ((120, 48), (160, 64)))
    assert torch.equal(OnnxPredictor(model)(image), small[:, rows][:, :, columns])


def test_a_file_that_resizes_gets_images_at_their_own_size(folder: Path) -> None:
    path = write_reads(folder / "resized.onnx", resize="true")
    image = torch.from_numpy(np.array(PIL.Image.open("photo.jpg"))).permute(2, 0, 1)[None]
    mask = predicted(path, folder / "photo.jpg", folder / "out")
    np.testing.assert_array_equal(mask, normalize(image)[0].argmax(0))


def test_bits_and_exif_are_those_of_the_metadata(folder: Path) -> None:
    model = OnnxModel(str(write_reads(folder / "deep.onnx", bits="12", exif='"ignore"')))
    assert (model.bits, model.exif) == (12, "ignore")


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 1}, r"resized\.onnx: scale can't be used with this file; export it with argmax=false"),
        ({"tile": [64, 64], "flip": True}, r"resized\.onnx: tile, flip can't be used with this file"),
        ({"probabilities": "all"}, r"resized\.onnx: probabilities can't be used with this file"),
        ({"coco_dataset": "rle"}, r"resized\.onnx: probabilities can't .*; coco_dataset needs them"),
        ({"accelerator": "gpu"}, "an ONNX file is run in float32 on the CPU"),
        ({"precision": "bf16-mixed"}, "an ONNX file is run in float32 on the CPU"),
    ],
    ids=str,
)
def test_options_that_need_scores_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    path = write_reads(folder / "resized.onnx", resize="true")
    with pytest.raises(CocosegError, match=message):
        predicted(path, folder / "photo.jpg", folder / "out", **settings)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, ".*"),
        ({"labels": "{}"}, "Object missing required field `classes`.*"),
        ({"image_size": "[0, 9999999]"}, "Expected `int` >= 1.*"),
        ({"labels": json.dumps(LabelMap(LABELS.classes[:2]).to_dict())}, "3 classes with 2 labels"),
        ({"license": json.dumps("x" * 2**20)}, "its metadata are too large"),
    ],
    ids=str,
)
def test_a_wrong_file_is_a_one_line_error(folder: Path, changes: dict[str, str] | None, reason: str) -> None:
    path = folder / "a.onnx"
    if changes is None:
        path.write_bytes(b"no protocol buffer")
    else:
        write_reads(path, **changes)
    message = rf"a\.onnx: no working ONNX file of python -m cocoseg\.export \({reason}\)"
    with pytest.raises(CocosegError) as caught:
        OnnxModel(str(path)).logits(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    assert re.fullmatch(rf".*{message}", str(caught.value))


def test_a_class_beyond_the_labels_is_refused(folder: Path) -> None:
    model = OnnxModel("segmentation_model.onnx")
    model._session = SimpleNamespace(run=lambda *_: [np.full((1, 4, 4), 255, np.uint8)])
    with pytest.raises(CocosegError, match="256 classes with 3 labels"):
        model.logits(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_missing_onnxruntime_is_a_one_line_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        CocosegError, match=r"model\.onnx needs onnxruntime; install it by pip install onnxrun"
    ):
        OnnxModel("segmentation_model.onnx")
