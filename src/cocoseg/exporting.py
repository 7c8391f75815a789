"""Other formats than `segmentation_model.pth`: written, checked against PyTorch, timed."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cocoseg import export_onnx, export_torch
from cocoseg.deployed import Deployed
from cocoseg.errors import CocosegError
from cocoseg.export import SegmentationModel
from cocoseg.files import whole_file

log = logging.getLogger(__name__)

TOLERANCE = 1e-3  # of the largest logit: what another order of sums may differ by
TIMED_FOR = 1.0  # seconds, at most, that passes are timed for
TIMED_PASSES = 7
OTHER = "the file gives other results than PyTorch"

Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How a format is written and read, and which (batch, height, width) to check it with."""

    ending: str
    write: Callable[[Deployed, Path], None]
    read: Callable[..., Run]
    sizes: Callable[[Deployed], list[tuple[int, int, int]]]


FORMATS = {
    "onnx": Format(".onnx", export_onnx.write, export_onnx.read, export_onnx.sizes),
    "torch_export": Format(".pt2", export_torch.write, export_torch.read, export_torch.sizes),
}


@dataclass(frozen=True)
class Exported:
    """A file that was written and agrees with PyTorch.

    Attributes:
        size: (height, width) of the image that the latencies are for.
        seconds, torch_seconds: median of a pass over one such image on the CPU, with the file and with
            PyTorch.
        same: share of the pixels that get the same class.
        difference: largest difference of a logit.
    """

    path: Path
    bytes: int
    size: tuple[int, int]
    seconds: float
    torch_seconds: float
    same: float
    difference: float

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.bytes / 1e6:.1f} MB; {1e3 * self.seconds:.1f} ms for an image of {height}x{width} "
            f"(PyTorch: {1e3 * self.torch_seconds:.1f} ms); logits within {self.difference:.1e}, "
            f"the same class at {100 * self.same:.2f} % of the pixels"
        )


def export_format(
    name: str, model: SegmentationModel, path: Path, *, normalise: bool = True, argmax: bool = True
) -> Exported:
    """Write a model in one of FORMATS; the file appears once it agrees with PyTorch at three sizes.

    Args:
        name: of the format.
        model: on the CPU.
        path: of the file, without its ending.
        normalise, argmax: see `Deployed`.

    Raises:
        CocosegError: the network can't be written in this format, or the file gives other results.
    """
    form = FORMATS[name]
    deployed = Deployed(model, normalise=normalise, argmax=argmax)
    target = path.with_name(path.name + form.ending)
    with whole_file(target) as temporary, torch.inference_mode(mode=False), torch.no_grad():
        try:
            form.write(deployed, temporary)
            run = form.read(temporary)
            logits = form.read(temporary, logits=True) if argmax else run
            same, difference = compare(deployed, run, logits, form.sizes(deployed))
        except (CocosegError, OSError, ImportError):
            raise
        except Exception as error:  # what a network of others makes the exporters raise can't be listed
            reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]
            raise CocosegError(f"the network can't be written as {name} ({reason})") from error
        first = deployed.example(*form.sizes(deployed)[0])
        seconds, torch_seconds = latency(run, first), latency(deployed, first)
        size = temporary.stat().st_size
    _, height, width = form.sizes(deployed)[0]
    return Exported(target, size, (height, width), seconds, torch_seconds, same, difference)


def compare(
    deployed: Deployed, run: Run, logits: Run, sizes: Sequence[tuple[int, int, int]]
) -> tuple[float, float]:
    """Hold an exported file against PyTorch.

    Args:
        deployed: what was exported.
        run, logits: the file; what it gives at last, and before its arg-max where there is one.
        sizes: (batch, height, width) of the images.

    Returns:
        share of the pixels of the same class; largest difference of a logit.

    Raises:
        CocosegError: a logit differs by more than TOLERANCE times the largest one, or a pixel has a class
            that is not the best one by the file's own logits.
    """
    same = pixels = 0
    worst = 0.0
    for number, (batch, height, width) in enumerate(sizes):
        image = deployed.example(batch, height, width, seed=number)
        wanted, found, result = deployed.logits(image), logits(image), run(image)
        where = f"for {batch} x {height}x{width}"
        if found.shape != wanted.shape:
            raise CocosegError(f"{OTHER}: logits of shape {tuple(found.shape)} {where}")
        off = (found - wanted).abs().max().item()
        if not off <= TOLERANCE * max(1.0, wanted.abs().max().item()):  # nor what is no number
            raise CocosegError(f"{OTHER}: logits that are {off:.3g} off {where}")
        classes = found.argmax(1)
        if deployed.argmax and not torch.equal(result, classes.to(torch.uint8)):
            raise CocosegError(f"{OTHER}: classes that are not those of the largest logits {where}")
        same += int((classes == wanted.argmax(1)).sum())
        pixels += classes.numel()
        worst = max(worst, off)
    return same / pixels, worst


def latency(run: Run, image: Tensor) -> float:
    """Median of the seconds that a pass takes, after one that doesn't count."""
    run(image)
    seconds: list[float] = []
    while len(seconds) < TIMED_PASSES and sum(seconds) < TIMED_FOR:
        begin = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
