"""ONNX: any batch size, height and width. Needs the extra `onnx`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.inference.deployed import Deployed


def write(deployed: Deployed, path: Path) -> int:
    """Write one file that holds the weights, and the labels in its `metadata_props`.

    Returns:
        heights and widths are multiples of this: 1 for built-in networks, which take any.
    """
    step = 1
    try:
        deployed(deployed.example(1, 77, 101))
    except Exception:  # a custom network may raise anything
        step = deployed.multiple
    # Traced at a size that must be padded: at one that fits, padding would be left out of the file.
    image = deployed.example(*deployed.sizes(step)[1])
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
    return step


def read(path: Path) -> Callable[[Tensor], Tensor]:
    """Load the file as a function that onnxruntime runs on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
