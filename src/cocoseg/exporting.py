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

Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How a format is written and read, and which (batch, height, width) to check it with."""

    ending: str
    write: Callable[[Deployed, Path], None]
    read: Callable[[Path], Run]
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
        difference: largest difference of a logit; None where the file gives classes.
    """

    path: Path
    bytes: int
    size: tuple[int, int]
    seconds: float
    torch_seconds: float
    same: float
    difference: float | None

    def __str__(self) -> str:
        height, width = self.size
        agreement = f"the same class at {100 * self.same:.2f} % of the pixels"
        if self.difference is not None:
            agreement += f", logits within {self.difference:.1e}"
        return (
            f"{self.bytes / 1e6:.1f} MB; {1e3 * self.seconds:.1f} ms for an image of {height}x{width} "
            f"(PyTorch: {1e3 * self.torch_seconds:.1f} ms); {agreement}"
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
            same, difference = compare(deployed, run, form.sizes(deployed))
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
    deployed: Deployed, run: Run, sizes: Sequence[tuple[int, int, int]]
) -> tuple[float, float | None]:
    """Hold an exported file against PyTorch.

    Returns:
        share of the pixels of the same class; largest difference of a logit, None where there are classes.

    Raises:
        CocosegError: a logit differs by more than TOLERANCE times the largest one, or a pixel has a class
            whose logit is that much below the best one, which no other order of sums explains.
    """
    same = pixels = 0
    worst: float | None = None
    for number, (batch, height, width) in enumerate(sizes):
        image = deployed.example(batch, height, width, seed=number)
        logits, found = deployed.logits(image), run(image)
        allowed = TOLERANCE * max(1.0, logits.abs().max().item())
        if deployed.argmax:
            classes = found.long()
            if classes.shape != (batch, height, width) or classes.max() >= logits.shape[1]:
                raise _other(f"classes of shape {tuple(found.shape)}", batch, height, width)
            off = (logits.amax(1) - logits.gather(1, classes.unsqueeze(1)).squeeze(1)).max().item()
        else:
            if found.shape != logits.shape:
                raise _other(f"logits of shape {tuple(found.shape)}", batch, height, width)
            classes = found.argmax(1)
            off = (found - logits).abs().max().item()
            worst = max(off, worst or 0.0)
        if not off <= allowed:  # no number is not either
            raise _other(f"logits that are {off:.3g} off", batch, height, width)
        same += int((classes == logits.argmax(1)).sum())
        pixels += classes.numel()
    return same / pixels, worst


def _other(what: str, batch: int, height: int, width: int) -> CocosegError:
    return CocosegError(f"the file gives other results than PyTorch: {what} for {batch} x {height}x{width}")


def latency(run: Run, image: Tensor) -> float:
    """Median of the seconds that a pass takes, after one that doesn't count."""
    run(image)
    seconds: list[float] = []
    while len(seconds) < TIMED_PASSES and sum(seconds) < TIMED_FOR:
        begin = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
