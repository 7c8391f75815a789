"""Export to ONNX, for any batch size, height and width. Needs the extra `onnx`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocoseg.inference.exported_module import Deployed


def write(deployed: Deployed, path: Path) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Write one file that holds the weights, and the labels in its `metadata_props`.

    Returns:
        The file as a function that onnxruntime runs on the CPU, and images to check it with.
    """
    import onnxruntime

    # Traced at a size that must be padded: at one that fits, the file would have no padding.
    images = deployed.examples(less=1)
    try:
        deployed(images[0])
    except Exception:  # a custom network may raise anything at such a size
        images = deployed.examples()
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # their warnings are about their internals
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed,
            (images[1],),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["classes" if deployed.argmax else "logits"],
            dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}},
        )
    assert program is not None  # as it is with dynamo
    program.model.metadata_props.update(deployed.metadata())
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), images
