"""torch.export: a program for torch alone, for sizes that are multiples of what the network asks for."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from cocoseg.deployed import Deployed


def write(deployed: Deployed, path: Path) -> None:
    """Write a `.pt2` file; the labels lie in its extra files.

    Height and width may be any multiples of `deployed.multiple` from twice that up: at once that the deepest
    level has a single row, for which torch makes another program.
    """
    multiple = deployed.multiple
    image = deployed.example(2, 6 * multiple, 4 * multiple)
    height, width = multiple * Dim("height_in_multiples", min=1), multiple * Dim("width_in_multiples", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            deployed,
            (image,),
            dynamic_shapes={"image": deployed.dimensions(Dim("batch", min=1), height, width)},
        )
        torch.export.save(program, path, extra_files=deployed.metadata())


def read(path: Path, *, logits: bool = False) -> Callable[[Tensor], Tensor]:
    """The file as a function, on the CPU. It is ours: a `.pt2` of others may run code on loading.

    Args:
        path: the file.
        logits: give what the arg-max in it is of, not the classes.
    """
    program = torch.export.load(path).module()
    if logits:
        argmax = [node for node in program.graph.nodes if node.target is torch.ops.aten.argmax.default][-1]
        program.graph.output_node().args = ((argmax.args[0],),)
        program.recompile()
    return program


def sizes(deployed: Deployed) -> list[tuple[int, int, int]]:
    """Batch, height and width to check it with; the first the nearest to that of training."""
    multiple = deployed.multiple
    height, width = (max(2, -(-side // multiple)) * multiple for side in deployed.image_size)
    return [(1, height, width), (3, 2 * multiple, 5 * multiple), (2, 7 * multiple, 3 * multiple)]
