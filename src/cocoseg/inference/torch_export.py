"""Export by torch.export: a program that needs only torch, for sizes that need no padding."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from cocoseg.inference.exported_module import Deployed


def write(deployed: Deployed, path: Path) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Write a file with the labels among its extra files.

    Heights and widths may be any multiples of `deployed.multiple`, from twice that up. At `multiple` itself
    the deepest level has a single row, for which torch makes another program.

    Returns:
        The file as a function on the CPU, and images to check it with.
    """
    images = deployed.examples()
    height, width = (deployed.multiple * Dim(f"{side}_in_multiples", min=1) for side in ("height", "width"))
    shapes = {"image": {0: Dim("batch", min=1), 1: height, 2: width}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(deployed, (images[1],), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files=deployed.metadata())
    # Loading a `.pt2` file from elsewhere may run its code; this one was written here.
    return torch.export.load(path).module(), images
