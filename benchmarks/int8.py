"""int8 against float32: ONNX files by onnxruntime's static quantization, their speed on a CPU, size and mIoU.

    python benchmarks/int8.py --root camvid scratch/segmentation_model.pth lite/segmentation_model.pth

`--root` holds `train`, `val` and `annotations/instances_{train,val}.json`. The ranges of activations are
those of 64 training images; mIoU is that of all validation images, at the network's size. All files of a
model predict the same image in turns, with one thread (the processor's time, which other work on the machine
changes little) and with two; medians. Weights are int8 with a scale per channel, activations signed (S8) or
unsigned (U8). On a CPU without VNNI sums of two products of 8 bits can overflow 16 bits; weights of 7 bits
avoid that.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from cocoseg import load_model
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.dataset import Split
from cocoseg.inference import onnx_export
from cocoseg.inference.exported_module import Deployed
from cocoseg.scores import Counts
from cocoseg.training.metrics import ConfusionMatrix

ROUNDS, PASSES = 7, 5  # turns of each file, and predictions in a turn
CALIBRATION = 64  # images
U8S8 = {"activation_type": QuantType.QUInt8, "per_channel": True}
PERCENTILE = U8S8 | {"calibrate_method": CalibrationMethod.Percentile}
NARROW = PERCENTILE | {"reduce_range": True}
WAYS: dict[str, dict[str, Any]] = {
    "S8S8, min and max": U8S8 | {"activation_type": QuantType.QInt8},
    "U8S8, min and max": U8S8,
    "U8S8, percentile": PERCENTILE,
    "the same, weights of 7 bits": NARROW,
    "the same, convolutions only": NARROW | {"op_types_to_quantize": ["Conv"]},
}


class Images(CalibrationDataReader):
    """Training images one by one, as onnxruntime asks for them."""

    def __init__(self, split: Split):
        chosen = np.random.default_rng(0).permutation(len(split))[:CALIBRATION].tolist()
        self.feeds = ({"image": pixels_of(split, number)} for number in chosen)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def pixels_of(split: Split, number: int) -> np.ndarray:  # (1, H, W, 3) uint8, the input of exported files
    return split.__getitems__([number])[0].permute(0, 2, 3, 1).contiguous().numpy()


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def miou(path: Path, split: Split, classes: int) -> float:
    session, matrix = open_session(path, 2), ConfusionMatrix(classes)
    for number in range(len(split)):
        (predicted,) = session.run(None, {"image": pixels_of(split, number)})
        matrix.update(torch.from_numpy(predicted).long(), split.__getitems__([number])[1].long())
    return float(Counts.from_matrix(matrix.compute().numpy()).summary()["miou"])


def milliseconds(paths: list[Path], image: np.ndarray, threads: int) -> list[float]:
    """Time per image with each file; a turn counts with its median, and of the turns the median."""
    clock = time.process_time if threads == 1 else time.perf_counter
    turns: list[Any] = [(open_session(path, threads), []) for path in paths]
    for number in range(ROUNDS + 1):
        for session, found in turns:
            passes = []
            for _ in range(PASSES):
                begin = clock()
                session.run(None, {"image": image})
                passes.append(clock() - begin)
            found += [1e3 * statistics.median(passes)] if number else []  # the first turn warms up
    return [statistics.median(found) for _, found in turns]


def compare(checkpoint: Path, root: Path, folder: Path) -> None:
    model = load_model(checkpoint)
    places = {"images": f"{root}/train", "annotations": f"{root}/annotations/instances_train.json"}
    places |= {"val_images": f"{root}/val", "val_annotations": f"{root}/annotations/instances_val.json"}
    places |= {"prepared_dir": f"{folder}/prepared"}
    data = SegmentationDataModule(**places, image_size=list(model.image_size))
    classes = len(data.labels)  # which prepares the data
    paths = {"float32": folder / "float32.onnx"}
    onnx_export.write(Deployed(model), paths["float32"])
    quant_pre_process(paths["float32"], folder / "ready.onnx", skip_symbolic_shape=True)
    for number, (name, how) in enumerate(WAYS.items()):
        paths[name] = folder / f"{number}.onnx"
        quantize_static(folder / "ready.onnx", paths[name], Images(data.train_set), **how)
    image = pixels_of(data.val_set, 0)
    taken = [milliseconds(list(paths.values()), image, threads) for threads in (1, 2)]
    print(f"\n{checkpoint}: {sum(p.numel() for p in model.parameters()):,} weights, {image.shape[1:3]}\n")
    print("| file | MB | ms, 1 thread | times as fast | ms, 2 threads | times as fast | mIoU |")
    print(f"|{'---|' * 7}")
    for index, (name, path) in enumerate(paths.items()):
        times = " | ".join(f"{found[index]:.1f} | {found[0] / found[index]:.2f}" for found in taken)
        score = miou(path, data.val_set, classes)
        print(f"| {name} | {path.stat().st_size / 1e6:.2f} | {times} | {score:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="segmentation_model.pth")
    parser.add_argument("--root", type=Path, required=True)
    options = parser.parse_args()
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in options.checkpoints:
            compare(checkpoint, options.root, Path(folder))


if __name__ == "__main__":
    main()
