"""Speed and memory of reading an instances file of COCO's full size: `json`, `pycocotools`, and cocoseg.

    python benchmarks/annotations.py                     # writes a seeded file of 118,287 images first
    python benchmarks/annotations.py --file instances_train2017.json

Each reading is a process of its own; the readers take turns, several rounds. The table shows medians of
the wall time of the reading alone and of the process's peak memory, and their ratio to pycocotools.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

READERS = ("json", "pycocotools", "cocoseg")


def write_file(path: Path, images: int) -> None:
    """COCO's proportions: 7.27 annotations an image, polygons of 26 points on average, 1.2 % crowd RLE."""
    rng = random.Random(0)
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [\n')
        file.write(",\n".join(json.dumps(_image(rng, number)) for number in range(1, images + 1)))
        file.write('\n], "annotations": [\n')
        count = round(images * 7.27)
        file.write(",\n".join(json.dumps(_annotation(rng, number, images)) for number in range(1, count + 1)))
        categories = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, 81)]
        file.write('\n], "categories": ' + json.dumps(categories) + "}\n")


def _image(rng: random.Random, number: int) -> dict:
    name = f"{number:012d}.jpg"
    return {
        "license": rng.randint(1, 8),
        "file_name": name,
        "coco_url": f"http://images.cocodataset.org/train2017/{name}",
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 16:28:13",
        "flickr_url": f"http://farm9.staticflickr.com/8186/{rng.randrange(10**10)}_{rng.randrange(10**10):x}_z.jpg",
        "id": number,
    }


def _annotation(rng: random.Random, number: int, images: int) -> dict:
    crowd = rng.random() < 0.012
    if crowd:
        shape: object = {"size": [480, 640], "counts": [rng.randint(1, 300) for _ in range(500)]}
    else:
        points = max(3, round(rng.expovariate(1 / 26)))
        shape = [[round(rng.uniform(0, 640), 2) for _ in range(2 * points)]]
    return {
        "segmentation": shape,
        "area": round(rng.uniform(10, 1e5), 4),
        "iscrowd": int(crowd),
        "image_id": rng.randint(1, images),
        "bbox": [round(rng.uniform(0, 640), 2) for _ in range(4)],
        "category_id": rng.randint(1, 80),
        "id": number,
    }


def read_once(reader: str, path: str) -> None:
    """Read the file and print seconds, and megabytes of peak memory."""
    if reader == "cocoseg":
        from cocoseg.preparation.coco_file import read
    elif reader == "pycocotools":
        from pycocotools.coco import COCO
    begin = time.perf_counter()
    if reader == "cocoseg":
        content = read(Path(path))
        assert content.annotations
    elif reader == "pycocotools":
        content = COCO(path)
    else:
        with Path(path).open() as file:
            content = json.load(file)
    seconds = time.perf_counter() - begin
    print(seconds, peak_megabytes())


def peak_megabytes() -> float:
    """Peak memory of this process alone; getrusage includes the parent's at the moment of the fork."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and megabytes of each reader."""
    figures: dict[str, list[tuple[float, float]]] = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader in READERS:
            command = [sys.executable, __file__, "--reader", reader, "--file", str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, megabytes = output.splitlines()[-1].split()
            figures[reader].append((float(seconds), float(megabytes)))
    return {
        reader: tuple(map(statistics.median, zip(*rows, strict=True))) for reader, rows in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="an instances file; without it one is written")
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        read_once(options.reader, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "instances.json"
        if options.file is None:
            write_file(path, options.images)
        figures = measure(path, options.rounds)
        print(f"{path.stat().st_size / 1e6:.0f} MB of JSON, medians of {options.rounds} rounds\n")
    seconds, megabytes = figures["pycocotools"]
    print("| reader | s | peak MB | times faster than pycocotools | share of its memory |")
    print("|---|---|---|---|---|")
    for reader, (s, mb) in figures.items():
        print(f"| {reader} | {s:.2f} | {mb:.0f} | {seconds / s:.1f} | {mb / megabytes:.2f} |")


if __name__ == "__main__":
    main()
