"""torch.export: a program for torch alone, for sizes that are multiples of what the network asks for."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from cocoseg.inference.deployed import Deployed


def write(deployed: Deployed, path: Path) -> int:
    """Write a file with the labels among its extra files.

    Returns:
        `deployed.multiple`: heights and widths may be any multiples of it, from two of them up. At one
        multiple the deepest level has a single row, for which torch makes another program.
    """
    multiple = deployed.multiple
    image = deployed.example(2, 6 * multiple, 4 * multiple)
    height, width = multiple * Dim("height_in_multiples", min=1), multiple * Dim("width_in_multiples", min=1)
    shape = deployed.dimensions(Dim("batch", min=1), height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(deployed, (image,), dynamic_shapes={"image": shape})
        torch.export.save(program, path, extra_files=deployed.metadata())
    return multiple


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Load the file as a function on the CPU.

    For files that this process has written: a `.pt2` file from elsewhere may run code on loading.
    """
    return torch.export.load(path).module()
