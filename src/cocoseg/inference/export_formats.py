"""Formats other than `segmentation_model.pth`: written, and checked against PyTorch before they count."""

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
TOLERANCE = 1e-3  # share of the largest logit: rounding under another order of summation stays far below
# With resizes inside: a pixel that lies between two levels may be rounded to the other one.
TOLERANCE_OF_RESIZES = 1e-2


def export_format(name: str, deployed: Deployed, path: Path) -> str:
    """Write a model in one of FORMATS; the file appears once it agrees with PyTorch at three sizes.

    Args:
        deployed: on the CPU.
        path: the file, without its suffix.

    Returns:
        a line for people: the file, its size, how well it agrees, the memory that resizes inside take.

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
        the largest difference between two logits. Of a file that gives classes: the most by which PyTorch's
        logit of such a class is below the highest one.

    Raises:
        CocosegError: the difference is more than that share of the largest logit.
    """
    differences = []
    for image in images:
        expected, output = deployed.logits(image), run(image)
        most = (TOLERANCE_OF_RESIZES if deployed.resize else TOLERANCE) * max(
            1.0, expected.abs().max().item()
        )
        if deployed.argmax:
            output = expected.gather(1, output.long().unsqueeze(1))
            expected = expected.amax(1, keepdim=True)
        has_shape = output.shape == expected.shape
        differences.append((output - expected).abs().max().item() if has_shape else float("inf"))
        if not differences[-1] <= most:  # refuses NaN, too
            raise CocosegError(
                f"the file gives other results than PyTorch for images {tuple(image.shape)}: "
                f"{differences[-1]:.3g} off"
            )
    return max(differences)
