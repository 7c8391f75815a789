"""torch.export: a program for torch alone, for sizes that are multiples of what the network asks for."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx.graph import CodeGen

from cocoseg.inference.deployed import Deployed

SUFFIX = ".pt2"


def step(deployed: Deployed) -> int:
    """Heights and widths are multiples of this."""
    return deployed.multiple


def write(deployed: Deployed, path: Path) -> None:
    """Write a file with the labels among its extra files.

    Height and width may be any multiples of `deployed.multiple`, from two of them up: at one multiple the
    deepest level has a single row, for which torch makes another program.
    """
    multiple = deployed.multiple
    image = deployed.example(2, 6 * multiple, 4 * multiple)
    height, width = multiple * Dim("height_in_multiples", min=1), multiple * Dim("width_in_multiples", min=1)
    shape = deployed.dimensions(Dim("batch", min=1), height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(deployed, (image,), dynamic_shapes={"image": shape})
        torch.export.save(program, path, extra_files=deployed.metadata())


def read(path: Path, *, argmax: bool) -> Callable[[Tensor], list[Tensor]]:
    """The file as a function on the CPU: image -> [classes, logits], or [logits].

    For files that this process has written: a `.pt2` file from elsewhere may run code on loading.
    """
    program = torch.export.load(path).module()
    if not argmax:
        return lambda image: [program(image)]
    node = [node for node in program.graph.nodes if node.target is torch.ops.aten.argmax.default][-1]
    output = program.graph.output_node()
    output.args = ([*output.args[0], node.args[0]],)
    program.graph.set_codegen(CodeGen())  # the exporter's own returns a single tensor
    program.recompile()
    return program
