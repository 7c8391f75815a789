"""An exported ONNX file in place of a model, run by onnxruntime on the CPU, as it is deployed."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cocoseg.errors import CocosegError, first_line
from cocoseg.inference.predictor import Pending, Predictor
from cocoseg.inference.tiling import Size
from cocoseg.networks.pixels import resize_masks
from cocoseg.networks.spec import FIELDS, ModelSpec
from cocoseg.networks.untrusted import require_plain

SUFFIX = ".onnx"
MOST_METADATA = 2**20  # characters of a value


class OnnxModel:
    """An ONNX file that `python -m cocoseg.export` wrote.

    Attributes:
        labels, image_size, license, exif, bits: from its metadata, as in `SegmentationModel`.
        resizes: it takes images at their own size, and its output has that size.
        gives_scores: its output is logits at the size of its input.

    Raises:
        CocosegError: it is no such file, or onnxruntime is missing.
    """

    device = torch.device("cpu")

    def __init__(self, path: str):
        self.path = path
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise CocosegError(f"{path} needs onnxruntime; install it by pip install onnxruntime") from error
        with self._explain_errors():
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map
            if max(map(len, metadata.values()), default=0) > MOST_METADATA:
                raise ValueError("its metadata are too large")
            content = {key: json.loads(text) for key, text in metadata.items() if key in FIELDS}
            require_plain(content)
            spec = ModelSpec.from_dict({**content, "network": {}})
            self.resizes: bool = json.loads(metadata.get("resize", "false"))
            self.gives_scores = not self.resizes and self._session.get_outputs()[0].name == "logits"
        self.labels, self.image_size, self.license = spec.labels, spec.image_size, spec.license
        self.exif, self.bits = spec.exif, spec.bits

    def logits(self, image: Tensor, autocast: torch.dtype | None = None) -> Tensor:
        """Run it on images (B, 3, H, W) uint8: logits (B, C, H, W) float32, or classes (B, H, W) uint8."""
        with self._explain_errors():
            (found,) = self._session.run(None, {"image": image.permute(0, 2, 3, 1).numpy()})
            is_scores = found.ndim == 4 and found.dtype == np.float32
            if not is_scores and (found.ndim != 3 or found.dtype != np.uint8):
                raise ValueError(f"it gives {found.dtype} {found.shape}")
            count = found.shape[1] if is_scores else int(found.max()) + 1
            if count > len(self.labels):
                raise ValueError(f"{count} classes with {len(self.labels)} labels")
        return torch.from_numpy(found)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # onnxruntime may raise anything on a foreign file
            reason = first_line(error)[:300]
            raise CocosegError(
                f"{self.path}: no working ONNX file of python -m cocoseg.export ({reason})"
            ) from error


class OnnxPredictor(Predictor):
    """Applies an ONNX file to images. Classes without scores are enlarged to the nearest neighbor.

    Raises:
        CocosegError: an option needs scores, which the file does not give.
    """

    def __init__(self, model: OnnxModel, **options: Any):
        asked = [key for key, value in options.items() if value not in (None, False, "auto")]
        if asked and not model.gives_scores:
            raise CocosegError(
                f"{model.path}: {', '.join(asked)} can't be used with this file; export it with argmax=false "
                f"and without export_resize{'; coco_dataset needs them' * ('probabilities' in asked)}"
            )
        super().__init__(model, **options | ({"scale": 1} if model.resizes else {}))

    @torch.inference_mode()
    def masks(self, image: Tensor, sizes: Sequence[Size]) -> Iterator[Pending]:
        if self.model.gives_scores:
            yield from super().masks(image, sizes)
            return
        for one, size in zip(image, sizes, strict=True):
            found = self.model.logits(one[None])
            classes = found if found.ndim == 3 else found.argmax(1)
            yield Pending(resize_masks(classes.to(torch.uint8), size)[0])
