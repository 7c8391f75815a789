"""Speed of predicting folders of images, against a plain loop with the same weights; latency; start-up.

    python benchmarks/predict.py --checkpoint segmentation_model.pth --images train2017

Images are converted to 640x480 JPEGs first. Measured is the time from files to mask files, the model loaded:

- plain loop: open, resize, forward (float32), enlarge the logits, arg-max, save, one image after the other;
- plain loop, coarse: the same, but the arg-max of the small logits is enlarged (jagged borders);
- ours: `cocoseg.inference.pipeline` in float32 and in the precision of `auto`, masks only; and with
  overlays and gallery.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as predict.py does

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from cocoseg.images.mask_files import MaskEncoding
from cocoseg.inference.find_images import ImageFile, find_images
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.pipeline import predict_images
from cocoseg.inference.predict_folder import DTYPES, resolve_device
from cocoseg.inference.predictor import Predictor
from cocoseg.inference.results import Results
from cocoseg.networks.spec import MEAN, STD
from cocoseg.workers import available_cores

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of images to take")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device, precision = resolve_device("auto", "auto")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = draw(options.images, folder / "in", options.count)
        model = load_model(options.checkpoint).to(device)
        print(f"{platform.machine()}, {available_cores()} cores, {device}, torch {torch.__version__}")
        height, width = model.image_size
        print(f"{len(images)} JPEGs of 640x480, network at {width}x{height}, {len(model.labels)} classes\n")
        ways: dict[str, Callable[[], None]] = {
            "plain loop": partial(plain, model, images, folder / "plain"),
            "plain loop, coarse": partial(plain, model, images, folder / "plain", coarse=True),
            "ours, float32": partial(ours, model, images, folder / "ours", "32-true"),
            f"ours, {precision}": partial(ours, model, images, folder / "ours", precision),
            f"ours, {precision}, overlays, gallery": partial(
                ours, model, images, folder / "ours", precision, draws=True
            ),
        }
        seconds = {name: float("inf") for name in ways}
        for _ in range(options.repeats):  # the ways take turns: the machine may be shared
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                seconds[name] = min(seconds[name], time.perf_counter() - begin)
        first = seconds["plain loop"]
        print("| | images per second | times the plain loop |\n|---|---|---|")
        for name, taken in seconds.items():
            print(f"| {name} | {len(images) / taken:.1f} | {first / taken:.2f} |")
        print(f"\nequal pixels, ours in float32 against the plain loop: {agreement(folder):.4%}")
        latency(model, images)
        start_up(options.checkpoint, images[0], folder)


def draw(source: Path, folder: Path, count: int) -> list[ImageFile]:
    """`count` JPEGs of 640x480 from the images of a folder, some of them several times."""
    folder.mkdir()
    for index, found in enumerate(islice(cycle(find_images(str(source), folder)), count)):
        with PIL.Image.open(found.path) as image:
            image.convert("RGB").resize((640, 480)).save(folder / f"{index:04}.jpg", quality=90)
    return find_images(str(folder), folder.parent / "out")


@torch.inference_mode()
def plain(model: SegmentationModel, images: list[ImageFile], output: Path, coarse: bool = False) -> None:
    output.mkdir(exist_ok=True)
    device = next(model.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    height, width = model.image_size
    for source in images:
        with PIL.Image.open(source.path) as file:
            image = file.convert("RGB")
        small = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].to(device) / 255
        logits = model((x - mean) / std)
        if coarse:
            mask = PIL.Image.fromarray(logits.argmax(1)[0].byte().cpu().numpy())
            mask = mask.resize(image.size, PIL.Image.Resampling.NEAREST)
        else:
            logits = F.interpolate(logits, size=(image.height, image.width), mode="bilinear")
            mask = PIL.Image.fromarray(logits.argmax(1)[0].byte().cpu().numpy())
        mask.save(output / f"{source.path.stem}.png")


def ours(
    model: SegmentationModel, images: list[ImageFile], output: Path, precision: str, draws: bool = False
) -> None:
    predictor = Predictor(model.to(memory_format=torch.channels_last), autocast=DTYPES[precision])
    encoding = MaskEncoding("palette", model.labels, "class_index")
    results = Results(output, encoding, overlay=draws, gallery=draws)
    workers = max(2, available_cores())
    for entry in predict_images(images, predictor, results, 8, workers):
        if entry is None:
            raise SystemExit("an image can't be read")


def agreement(folder: Path) -> float:
    """Share of pixels at which the last runs of both agree."""
    equal = []
    for path in sorted((folder / "plain").glob("*.png")):
        a, b = (np.asarray(PIL.Image.open(p)) for p in (path, folder / "ours/masks" / path.name))
        equal.append((a == b).mean())
    return float(np.mean(equal))


def latency(model: SegmentationModel, images: list[ImageFile]) -> None:
    seconds = []
    for image in images[:21]:
        begin = time.perf_counter()
        model.predict(image.path)
        seconds.append(time.perf_counter() - begin)
    print(f"one image, model loaded: {1000 * float(np.median(seconds[1:])):.0f} ms (median, float32)")


def start_up(checkpoint: Path, image: ImageFile, folder: Path) -> None:
    one = [f"checkpoint={checkpoint.resolve()}", f"input={image.path}", "overlay=false", "gallery=false"]
    for what, arguments, exit_code in (
        ("--help", ["--help"], 0),
        ("a mistake", ["scale=0"], 2),
        ("one image", one, 0),
    ):
        seconds = []
        for number in range(3):
            where = [] if what == "--help" else [f"output={folder}/{what.replace(' ', '_')}{number}"]
            command = [sys.executable, str(ROOT / "predict.py"), *arguments, *where]
            begin = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            seconds.append(time.perf_counter() - begin)
            if done.returncode != exit_code:
                raise SystemExit(done.stderr)
        print(f"predict.py, {what}: {min(seconds):.2f} s from start to end")


if __name__ == "__main__":
    main()
