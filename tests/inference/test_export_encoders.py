"""Training steps and exported files of networks with timm's encoders."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from cocoseg.inference.export_formats import export_format
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.model import SegmentationModel
from cocoseg.networks.encoders import require_any_size
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.timm_unet import TimmUNet
from tiny import LABELS

NARROW = (8, 8, 8, 8, 4)
SWIN = "swin_tiny_patch4_window7_224"
# The strides are 2 to 32. Those of vgg11 are 1 to 32, those of convnext and swin 4 to 32.
ENCODERS = {
    "convnext_tiny": "LayerNorm, depthwise 7x7",
    "hgnetv2_b4": "convolutions of many sizes",
    "mobilenetv4_conv_small": "depthwise",
    SWIN: "channels last, attention in windows",
    "vgg11": "features at full size",
    "lcnet_100": "hard-swish, squeeze and excitation",
    "resnetv2_50": "pre-activation",
}


def trained_a_step(name: str) -> TimmUNet:
    """A network after a step in bfloat16 on the CPU; the gradients of all parameters are finite."""
    torch.manual_seed(0)
    net = TimmUNet(3, name, decoder_channels=NARROW)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    image, mask = torch.randn(2, 3, 64, 96), torch.randint(3, (2, 64, 96))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(net(image).float(), mask)
    loss.backward()
    for part, parameter in net.named_parameters():
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
    optimizer.step()
    return net.eval()


def deployed(net: TimmUNet) -> Deployed:
    return Deployed(SegmentationModel(net, ModelSpec({}, LABELS, (64, 96)), None), argmax=False)


def pixels(*shape: int) -> torch.Tensor:
    """Noise (B, H, W, 3) uint8."""
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_onnx_equals(module: Deployed, folder: Path) -> None:
    """Write the file and compare it, also at sizes that are no multiples of 32."""
    onnxruntime = pytest.importorskip("onnxruntime")
    export_format("onnx", module, folder / "model")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 64, 96), (2, 37, 50), (1, 90, 120), (3, 1, 3), (1, 65, 33)):
        image = pixels(*shape)
        (logits,) = session.run(None, {"image": image.numpy()})
        expected = module(image)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_trained_evaluated_and_exported(name: str, tmp_path: Path) -> None:
    net = trained_a_step(name)
    require_any_size(net.encoder, name)
    with torch.inference_mode():
        for size in ((1, 1), (33, 65), (90, 120)):
            logits = net(torch.randn(1, 3, *size))
            assert logits.shape == (1, 3, *size)
            assert logits.isfinite().all()
    if name != SWIN:  # torch took more than ten minutes for its windows at variable sizes
        with torch.no_grad():
            assert_onnx_equals(deployed(net), tmp_path)


@pytest.mark.slow
def test_efficientnet_lite_as_onnx_in_reasonable_time(tmp_path: Path) -> None:
    """With timm's padding, which depends on the size, the export took more than 120 s on one core."""
    module = deployed(trained_a_step("tf_efficientnet_lite0"))
    start = time.process_time()
    with torch.no_grad():
        assert_onnx_equals(module, tmp_path)
    assert time.process_time() - start < 100


@pytest.mark.slow
def test_efficientnet_lite_as_torch_export(tmp_path: Path) -> None:
    module = deployed(trained_a_step("tf_efficientnet_lite0"))
    export_format("torch_export", module, tmp_path / "model")
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for shape in ((1, 64, 64), (3, 96, 160), (2, 256, 64)):
            image = pixels(*shape)
            torch.testing.assert_close(program(image), module(image), atol=1e-5, rtol=1e-5)
