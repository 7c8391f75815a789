"""ONNX: any batch size, height and width. Needs the extra `onnx`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.inference.deployed import Deployed

SUFFIX = ".onnx"


def step(deployed: Deployed) -> int:
    """1 where the network takes every height and width, as our own do; else its multiple."""
    try:
        deployed(deployed.example(1, 77, 101))
    except Exception:  # a custom network may raise anything
        return deployed.multiple
    return 1


def write(deployed: Deployed, path: Path) -> None:
    """Write one file that holds the weights, and the labels in its `metadata_props`."""
    # Traced at a size that must be padded: at one that fits, padding would be left out of the file.
    image = deployed.example(*deployed.sizes(step(deployed))[1])
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # their warnings are about their own internals
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (image,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["classes" if deployed.argmax else "logits"],
            dynamic_shapes={"image": deployed.dimensions("batch", "height", "width")},
        )
    program.model.metadata_props.update(deployed.metadata())
    program.save(path, external_data=False)


def read(path: Path, *, argmax: bool) -> Callable[[Tensor], list[Tensor]]:
    """The file as a function that onnxruntime runs on the CPU: image -> [classes, logits], or [logits]."""
    import onnx
    import onnxruntime

    program = onnx.load(path)
    if argmax:
        logits = [node.input[0] for node in program.graph.node if node.op_type == "ArgMax"][-1]
        program.graph.output.append(onnx.helper.make_empty_tensor_value_info(logits))
    session = onnxruntime.InferenceSession(program.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(values) for values in session.run(None, {"image": image.numpy()})]
