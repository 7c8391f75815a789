"""Predictions as training labels: a third of the labels, the third with predictions for the rest, and all.

    python benchmarks/pseudo_labels.py --root camvid --steps 300 --json runs.jsonl -- experiment=camvid_lite

`--root` holds `train`, `val` and `annotations/instances_{train,val}.json`. A seed chooses a third of the
images. For each seed: train on the third, let that model label the other images by `predict.py
coco_dataset=rle`, and train anew on the third and `data.extra` with each of `--weights`. Every training
begins with the same weights and has the same number of steps. The table shows validation mIoU of the
exported model.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

from training_runs import ROOT, limit, train_once

from cocoseg.workers import available_cores

THIRD, ALL = "third", "all"


class Way(NamedTuple):
    """A choice of labels: a third, all, or a third and predictions, with overrides of predict.py."""

    name: str
    asked: str | None = None
    weight: float = 1.0


def split(root: Path, seed: int, file: Path, links: Path) -> None:
    """Write the annotation file of a third of the images, and a folder of links to the others."""
    content = json.loads((root / "annotations/instances_train.json").read_bytes())
    images = sorted(content["images"], key=lambda image: image["file_name"])
    random.Random(seed).shuffle(images)
    third, others = images[: len(images) // 3], images[len(images) // 3 :]
    ids = {image["id"] for image in third}
    annotations = [one for one in content["annotations"] if one["image_id"] in ids]
    file.write_text(json.dumps(content | {"images": third, "annotations": annotations}))
    links.mkdir()
    for image in others:
        (links / Path(image["file_name"]).name).symlink_to((root / "train" / image["file_name"]).resolve())


def predict(model: Path, images: Path, output: Path, overrides: list[str]) -> None:
    """Let a model label images; `output` gets coco_dataset.json."""
    typed = [f"checkpoint={model}", f"input={images}", f"output={output}", "coco_dataset=rle", *overrides]
    command = [sys.executable, str(ROOT / "predict.py"), *typed, "overlay=false", "gallery=false"]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})


def labels_of(options: argparse.Namespace, way: Way, seed: int, folder: Path) -> list[str]:
    """Overrides that name the training images of a way."""
    third, others = folder / f"third{seed}.json", folder / f"others{seed}"
    if not third.exists():
        split(options.root, seed, third, others)
    if way.name == ALL:
        return [f"data.prepared_dir={folder}/all"]
    typed = [f"data.prepared_dir={folder}/third{seed}", f"data.annotations={third}"]
    if way.asked is None:
        return typed
    output = folder / f"predicted{seed}_{options.predict.index(way.asked)}"
    if not output.exists():
        predict(folder / f"run{seed}_0" / "segmentation_model.pth", others, output, way.asked.split())
    extra = f"images:'{others}',annotations:'{output}/coco_dataset.json',weight:{way.weight}"
    return [*typed, f"data.extra=[{{{extra}}}]"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--predict", action="append", help="overrides of predict.py, ways for each")
    parser.add_argument("--json", type=Path, required=True, help="file that gets a line for each training")
    parser.add_argument("overrides", nargs="*", help="of train.py; after --")
    options = parser.parse_args()
    options.root = options.root.resolve()
    options.predict = options.predict or [""]
    ways = [Way(THIRD), Way(ALL)]
    for asked, weight in product(options.predict, options.weights):
        ways.append(Way(f"third and predictions, weight {weight} {asked}".rstrip(), asked, weight))
    scores: dict[str, list[float]] = {way.name: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way, seed in product(ways, range(options.seeds)):
            data = ["data=train_val", f"data.root={options.root}", *labels_of(options, way, seed, folder)]
            typed = [*options.overrides, *data, f"seed={seed}", *limit(steps=options.steps)]
            result = train_once(typed, folder / f"run{seed}_{ways.index(way)}", available_cores())
            scores[way.name].append(result["miou"])
            with options.json.open("a") as record:
                record.write(json.dumps({"way": way.name, "seed": seed, **result}) + "\n")
    print("| labels | mIoU, mean | each seed | against the third |\n|---|---|---|---|")
    for way, each in scores.items():
        gains = ", ".join(f"{a - b:+.3f}" for a, b in zip(each, scores[THIRD], strict=True))
        print(f"| {way} | {statistics.mean(each):.3f} | {', '.join(f'{s:.3f}' for s in each)} | {gains} |")


if __name__ == "__main__":
    main()
