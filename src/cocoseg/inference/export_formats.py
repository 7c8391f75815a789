"""Formats other than `segmentation_model.pth`, compared with PyTorch before they appear."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, whole_file
from cocoseg.inference import onnx_export, torch_export
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.onnx_model import SUFFIX

FORMATS = {"onnx": SUFFIX, "torch_export": ".pt2"}  # name -> suffix of its file
MODULES = {"onnx": onnx_export, "torch_export": torch_export}
TOLERANCE = 1e-3  # share of the largest logit; another order of summation changes far less
# With resizes inside a pixel that lies between two values may be rounded to the other one.
TOLERANCE_OF_RESIZES = 1e-2


def export_format(name: str, deployed: Deployed, path: Path) -> str:
    """Write a model in one of FORMATS. The file appears once it agrees with PyTorch at three sizes.

    Args:
        deployed: on the CPU.
        path: the file, without its suffix.

    Returns:
        A line for the log: the file, its size, its difference from PyTorch, the memory of resizes inside.

    Raises:
        CocosegError: the network can't be written in this format, or the file gives other results.
    """
    target = path.with_name(path.name + FORMATS[name])
    with whole_file(target) as temporary, torch.no_grad():
        try:
            run, images = MODULES[name].write(deployed, temporary)
            difference = compare(deployed, run, images)
        except (CocosegError, OSError):
            raise
        except Exception as error:  # the exporters may raise anything on a custom network
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]
            raise CocosegError(f"the network can't be written as {name} ({reason})") from error
    size = target.stat().st_size / 1e6
    line = f"{from_here(target)}  {size:.1f} MB; logits within {difference:.1e} of PyTorch's"
    return f"{line}; {deployed.memory()}" if deployed.resize else line


def compare(deployed: Deployed, run: Callable[[Tensor], Tensor], images: list[Tensor]) -> float:
    """Compare an exported file with PyTorch.

    Args:
        run: the file as a function from images (B, H, W, 3) uint8 to logits or classes.

    Returns:
        The largest difference between two logits. For a file that gives classes: the largest difference
        between PyTorch's highest logit and its logit of the file's class.

    Raises:
        CocosegError: the difference is more than this share of the largest logit: `TOLERANCE`, with resizes
            inside `TOLERANCE_OF_RESIZES`.
    """
    tolerance = TOLERANCE_OF_RESIZES if deployed.resize else TOLERANCE
    differences = []
    for image in images:
        expected, output = deployed.logits(image), run(image)
        most = tolerance * max(1.0, expected.abs().max().item())
        if deployed.argmax:
            output = expected.gather(1, output.long().unsqueeze(1))
            expected = expected.amax(1, keepdim=True)
        has_shape = output.shape == expected.shape
        differences.append((output - expected).abs().max().item() if has_shape else float("inf"))
        if not differences[-1] <= most:  # refuses NaN, too
            found = f"images {tuple(image.shape)}: {differences[-1]:.3g} off"
            raise CocosegError(f"the file gives other results than PyTorch for {found}")
    return max(differences)
