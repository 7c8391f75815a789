"""ONNX: any batch size, height and width. Needs the extra `onnx`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.deployed import Deployed

ODD = (77, 101)  # height, width that networks must pad; at a size that fits, tracing would leave that out


def write(deployed: Deployed, path: Path) -> None:
    """Write one file, weights and labels in it (in its `metadata_props`)."""
    image = deployed.example(2, *_odd(deployed))
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # what they say is about themselves
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (image,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=[deployed.output],
            dynamic_shapes={"image": deployed.dimensions("batch", "height", "width")},
        )
    program.model.metadata_props.update(deployed.metadata())
    program.save(path, external_data=False)


def read(path: Path, *, logits: bool = False) -> Callable[[Tensor], Tensor]:
    """The file as a function, run by onnxruntime on the CPU.

    Args:
        path: the file.
        logits: give what the arg-max in it is of, not the classes.
    """
    import onnx
    import onnxruntime

    program = onnx.load(path)
    if logits:
        name = [node.input[0] for node in program.graph.node if node.op_type == "ArgMax"][-1]
        program.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[-1])


def sizes(deployed: Deployed) -> list[tuple[int, int, int]]:
    """Batch, height and width to check it with: those of training, some to be padded, some that fit."""
    height, width = _odd(deployed)
    return [
        (1, *deployed.image_size),
        (3, width, height),
        (2, 3 * deployed.multiple, 2 * deployed.multiple),
    ]


def _odd(deployed: Deployed) -> tuple[int, int]:
    """ODD, or where the network takes no such size, the next that fits."""
    if deployed.takes(*ODD):
        return ODD
    height, width = (-(-side // deployed.multiple) * deployed.multiple for side in ODD)
    return height, width
