"""Formats other than `segmentation_model.pth`: written, and checked against PyTorch before they count."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, whole_file
from cocoseg.inference import onnx_export as export_onnx
from cocoseg.inference import torch_export as export_torch
from cocoseg.inference.deployed import Deployed

FORMATS = {"onnx": export_onnx, "torch_export": export_torch}
TOLERANCE = 1e-3  # of the largest logit: rounding under another order of summation stays far below


def export_format(name: str, deployed: Deployed, path: Path) -> str:
    """Write a model in one of FORMATS; the file appears once it agrees with PyTorch at three sizes.

    Args:
        name: key of FORMATS.
        deployed: on the CPU.
        path: the file, without its suffix.

    Returns:
        a line for people: the file, its size, how well it agrees.

    Raises:
        CocosegError: the network can't be written in this format, or the file gives other results.
    """
    form = FORMATS[name]
    target = path.with_name(path.name + form.SUFFIX)
    with whole_file(target) as temporary, torch.no_grad():
        try:
            form.write(deployed, temporary)
            run = form.read(temporary, argmax=deployed.argmax)
            difference = compare(deployed, run, deployed.sizes(form.step(deployed)))
        except (CocosegError, OSError):
            raise
        except Exception as error:  # the exporters may raise anything on a custom network
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]
            raise CocosegError(f"the network can't be written as {name} ({reason})") from error
    size = target.stat().st_size / 1e6
    return f"{from_here(target)}  {size:.1f} MB; logits within {difference:.1e} of PyTorch's"


def compare(
    deployed: Deployed, run: Callable[[Tensor], list[Tensor]], sizes: list[tuple[int, int, int]]
) -> float:
    """The largest difference between a logit of an exported file and of PyTorch.

    Args:
        deployed: the module that was exported.
        run: the file as a function: image -> its output first, its logits last.
        sizes: (batch, height, width) of the images.

    Raises:
        CocosegError: a logit differs by more than TOLERANCE times the largest one, or the classes are not
            the arg-max of the file's own logits.
    """
    differences = []
    for seed, (batch, height, width) in enumerate(sizes):
        other = f"the file gives other results than PyTorch for {batch} x {height}x{width}"
        image = deployed.example(batch, height, width, seed=seed)
        expected, outputs = deployed.logits(image), run(image)
        logits = outputs[-1]
        if logits.shape != expected.shape:
            raise CocosegError(f"{other}: logits of shape {tuple(logits.shape)}")
        differences.append((logits - expected).abs().max().item())
        if not differences[-1] <= TOLERANCE * max(1.0, expected.abs().max().item()):  # refuses NaN, too
            raise CocosegError(f"{other}: logits that are {differences[-1]:.3g} off")
        if deployed.argmax and not torch.equal(outputs[0], logits.argmax(1).to(torch.uint8)):
            raise CocosegError(f"{other}: classes that are not those of the largest logits")
    return max(differences)
