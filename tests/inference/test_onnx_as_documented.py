"""ONNX files give the masks of `predict`: by the code in docs/using.md, and by themselves."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from cocoseg.config import PredictConfig
from cocoseg.inference.export_formats import export_format
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.predict_folder import predict_folder
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec
from conftest import ROOT
from tiny import LABELS, NETWORK, tiny_unet

SIZE = (48, 64)  # at which the network sees every image
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "using.md").read_text(), re.DOTALL)
SNIPPET = next(block for block in BLOCKS if "InferenceSession" in block)


def colors(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colored regions under noise: (h, w, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0].permute(1, 2, 0)
    noise = torch.randn(height, width, 3, generator=generator) / 20
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees each class somewhere, and two ONNX files of it. Not to be changed."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    net = tiny_unet().eval()
    with torch.no_grad():
        net.head.weight *= 30
        net.head.bias -= net(normalize(torch.from_numpy(colors(*SIZE)).permute(2, 0, 1)[None])).mean(
            (0, 2, 3)
        )
    spec = ModelSpec(NETWORK, LABELS, SIZE)
    save_model(folder / "model.pth", net.state_dict(), spec, None)
    model = SegmentationModel(net, spec, None)
    export_format("onnx", Deployed(model, argmax=False), folder / "segmentation_model")
    line = export_format("onnx", Deployed(model, resize=True), folder / "resized")
    assert "resizes inside take " in line
    return folder


def predicted(folder: Path, photo: Path, output: Path) -> np.ndarray:
    """The mask of predict.py."""
    config = PredictConfig(
        checkpoint=str(folder / "model.pth"),
        input=str(photo),
        values="index",
        precision="32-true",
        accelerator="cpu",
        overlay=False,
        gallery=False,
    )
    predict_folder(config, output)
    with PIL.Image.open(output / "masks/photo.png") as mask:
        return np.asarray(mask)


@pytest.mark.parametrize("size", [(48, 64), (31, 40), (400, 333)], ids=str)
def test_all_ways_give_the_same_mask(
    folder: Path, tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(colors(*size)).save("photo.jpg")
    Path("segmentation_model.onnx").symlink_to(folder / "segmentation_model.onnx")
    documented: dict[str, Any] = {}

    exec(SNIPPET, documented)

    expected = load_model(folder / "model.pth").predict("photo.jpg")
    assert np.bincount(expected.ravel(), minlength=3).min() > 0.03 * expected.size
    image = np.asarray(PIL.Image.open("photo.jpg"))[None]
    session = onnxruntime.InferenceSession(folder / "resized.onnx")
    (itself,) = session.run(["classes"], {"image": image})
    for mask in (documented["mask"], predicted(folder, tmp_path / "photo.jpg", tmp_path / "out"), itself[0]):
        assert (mask.dtype, mask.shape) == (np.uint8, size)
        assert (mask == expected).mean() >= 0.995
    assert documented["names"] == LABELS.names
