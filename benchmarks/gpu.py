"""Everything that is to be measured on a machine with a GPU, in one command with a time limit.

    python benchmarks/gpu.py --out results --data data --total 560

The parts run in order of worth, each in a process of its own with a time limit; one that reaches it is ended,
and what it has printed is kept. `--out` gets a log per part, and `results.jsonl` with a line for every part
as soon as it has ended and a line for every row of its tables. `--data` holds `coco/train2017`,
`coco/annotations/instances_train2017.json` (any number of images) and `camvid/` (`train`, `val`,
`annotations/instances_{train,val}.json`). `--tiny` tries everything out on a machine without a GPU.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from cocoseg.durations import as_duration

ROOT = Path(__file__).parents[1]
GRACE = 5.0  # seconds between the request to end and the end
BESIDE = 20.0  # seconds by which a training's limit is above `trainer.max_time`, which it should keep itself
SHOWN = 1500  # characters at the end of a log whose part has failed
COCO_IMAGES = 2048
SHOWN_LINES = ("|", "FAILED", "ERROR", "Rounds:", "By the run's own ledger")  # their beginnings
SHOWN_PHRASES = ("matrix rate", "a step without the profiler", " passed", " failed", " skipped in ")
PARTS = ["step", "kernels", "pipeline", "tests", "camvid", "camvid_lite", "pipeline_coco"]  # best first


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        name: of its log.
        limit: seconds.
        least: seconds without which it is not worth starting.
        command: arguments of Python, given the seconds it has.
        run: run folder of a training, or None.
    """

    name: str
    limit: float
    least: float
    command: Callable[[float], list[str]]
    run: Path | None = None


def steps(options: argparse.Namespace) -> Iterator[Part]:
    """The parts with a fixed amount of work."""
    tiny = options.tiny
    files = [
        str(path) for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()
    ]
    pytest = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--timeout=100", "-q", "-rfEs"]
    yield Part("tests", 240, 60, lambda _: [*pytest, "--durations=6", "--tb=short", *sorted(files)])

    sizes = ["--batches", "2", "--size", "32", "--base", "4", "--rounds", "1", "--steps", "1"]
    sizes = sizes if tiny else ["--batches", "64", "128", "--rounds", "3"]
    yield Part("step", 120, 40, lambda _: ["benchmarks/step.py", *sizes, "--compile"])

    coco = many_images(Path(options.data, "coco"), Path(options.work, "coco"), 16 if tiny else COCO_IMAGES)
    data = [
        *("data=custom", f"data.images={coco}/images", f"data.annotations={coco}/instances.json"),
        *("augment=default", f"data.batch_size={4 if tiny else 64}"),
    ]
    small = ["data.image_size=[32,32]"] if tiny else []
    rounds = ["--rounds", "1", "--steps", "5"] if tiny else ["--rounds", "3", "--steps", "100"]
    pipeline = ["benchmarks/pipeline.py", *rounds, "--", *data, *small]
    narrow = ["model.base_channels=4"] if tiny else []
    yield Part("pipeline", 110, 50, lambda _: [*pipeline, *narrow])

    of_step = ["--batch", "2", "--size", "32", "--base", "4"] if tiny else ["--batch", "64"]
    yield Part("kernels", 60, 25, lambda _: ["benchmarks/kernels.py", *of_step, "--compile"])

    preset = ["experiment=coco", "model.weights=null", "finetune.frozen=0"]
    yield Part("pipeline_coco", 110, 50, lambda _: [*pipeline, *preset])


def trainings(options: argparse.Namespace) -> Iterator[Part]:
    """CamVid with the preset for a GPU: from scratch, and with an encoder that has seen ImageNet."""
    tiny = ["data.image_size=[48,64]", "data.batch_size=4", "budget.validation_share=0.3"]
    lite = ["model=unet_lite0", "~model.base_channels", "~model.stochastic_depth", "finetune.encoder_lr=0.3"]
    ways = {"camvid": ["model.base_channels=4"] if options.tiny else [], "camvid_lite": lite}
    for name, overrides in ways.items():
        run = Path(options.work, name)
        fixed = [
            *("train.py", "experiment=camvid", f"data.root={options.data}/camvid"),
            *(f"data.prepared_dir={options.work}/prepared_{name}", f"run_dir={run}"),
            *(tiny if options.tiny else []),
            *overrides,
            *options.overrides,
        ]

        def command(seconds: float, fixed: list[str] = fixed) -> list[str]:
            return [*fixed, f'trainer.max_time="{as_duration(seconds - BESIDE)}"']

        yield Part(name, options.camvid + BESIDE, 30 + BESIDE, command, run)


def many_images(source: Path, target: Path, count: int) -> Path:
    """Copy images under new names until there are as many as asked for, with their annotations.

    A data set of few images would spend its time between epochs.
    """
    content = json.loads((source / "annotations" / "instances_train2017.json").read_bytes())
    originals, annotations = content["images"], {}
    for annotation in content["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    (target / "images").mkdir(parents=True, exist_ok=True)
    images, copies = [], []
    for number in range(count):
        original = originals[number % len(originals)]
        name = f"{number}.jpg"
        shutil.copyfile(source / "train2017" / original["file_name"], target / "images" / name)
        images.append({**original, "id": number, "file_name": name})
        for one in annotations.get(original["id"], []):
            copies.append({**one, "id": len(copies) + 1, "image_id": number})
    (target / "instances.json").write_text(
        json.dumps({"images": images, "annotations": copies, "categories": content["categories"]})
    )
    return target


def run_limited(commands: dict[Path, list[str]], limit: float) -> dict[Path, tuple[float, int, bool]]:
    """Run programs side by side, their output to files; end them and all that they have started at the limit.

    Args:
        commands: by log file.

    Returns:
        by log file: seconds, exit status, and whether the program was ended.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT / "src"), environment.get("PYTHONPATH")])
    )
    begin, running, done = time.monotonic(), {}, {}

    def wait(end: float, *, ended: bool) -> None:
        while len(done) < len(running) and time.monotonic() < end:
            for log, process in running.items():
                if log not in done and process.poll() is not None:
                    done[log] = time.monotonic() - begin, process.returncode, ended
            time.sleep(0.05)

    try:
        for log, command in commands.items():
            with log.open("wb") as output:
                running[log] = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
                )
        wait(begin + limit, ended=False)
        for log in running.keys() - done:
            signal_group(running[log].pid, signal.SIGTERM)
        wait(begin + limit + GRACE, ended=True)
    finally:
        for process in running.values():
            signal_group(process.pid, signal.SIGKILL)
    for log in running.keys() - done:
        done[log] = time.monotonic() - begin, running[log].wait(), True
    return done


def signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def tables(text: str) -> Iterator[dict[str, str]]:
    """The rows of the Markdown tables in a text."""
    header: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else None
        if cells is None:
            header = header if line.startswith("|---") else None
        elif header is None:
            header = cells
        else:
            yield dict(zip(header, cells, strict=False))


class Results:
    """Measurements, in `results.jsonl` and on the terminal.

    Args:
        folder: gets the file and the logs.
        common: what every line says: card, versions, commit.
    """

    def __init__(self, folder: Path, common: dict[str, Any]):
        self.folder, self.common, self.shown = folder, common, []

    def write(self, **values: Any) -> None:
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({**self.common, **values}) + "\n")

    def log(self, part: Part) -> Path:
        return self.folder / f"{part.name}.log"

    def show(self, text: str) -> None:
        self.shown.append(text)
        print(text, flush=True)

    def skip(self, parts: list[Part], left: float) -> None:
        for part in parts:
            self.write(part=part.name, skipped=True, left=round(left))
            self.show(f"\n== {part.name}: skipped, {left:.0f} s are left")

    def add(self, part: Part, limit: float, seconds: float, status: int, ended: bool) -> None:
        text = self.log(part).read_text(errors="replace")
        outcome = {}
        for name in ("outcome", "metrics") if part.run else ():
            if (file := part.run / f"{name}.json").is_file():
                outcome |= json.loads(file.read_bytes())
        said = {"seconds": round(seconds, 1), "limit": round(limit), "exit": status, "ended": ended}
        self.write(part=part.name, **said, outcome=outcome)
        for row in tables(text):
            self.write(part=part.name, row=row)
        self.show(f"\n== {part.name}: {', '.join(f'{key} {value}' for key, value in said.items())}")
        chosen = [
            line
            for line in text.splitlines()
            if line.startswith(SHOWN_LINES) or any(phrase in line for phrase in SHOWN_PHRASES)
        ]
        self.show("\n".join(chosen))
        if outcome:
            self.show(str({key: value for key, value in outcome.items() if key not in ("iou", "per_class")}))
        if status or not (chosen or outcome):
            self.show(text[-SHOWN:])


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what is running, too
    begin = time.monotonic()
    results = Results(options.out, machine(options.commit))
    results.show(str(results.common))
    with tempfile.TemporaryDirectory(prefix="gpu_") as folder:
        options.work = folder
        parts = [part for part in (*steps(options), *trainings(options)) if part.name in options.parts]
        parts.sort(key=lambda part: options.parts.index(part.name))
        while parts:
            together = (
                [part for part in parts if part.run] if options.together and parts[0].run else parts[:1]
            )
            left = options.total - GRACE - (time.monotonic() - begin)
            limit = min(together[0].limit, left)
            if together[0].run:  # trainings share what is left
                limit = min(limit, left / (1 if len(together) > 1 else sum(bool(part.run) for part in parts)))
            parts = [part for part in parts if part not in together]
            if limit < together[0].least:
                results.skip(together, left)
            else:
                logs = {results.log(part): [sys.executable, *part.command(limit)] for part in together}
                done = run_limited(logs, limit)
                for part in together:
                    results.add(part, limit, *done[results.log(part)])
    print("\n\n# All results")
    print("\n".join(results.shown))


def machine(commit: str | None) -> dict[str, str]:
    """Fields of every line: card, torch, Python, commit. Torch is not loaded for it: that takes seconds."""

    def said(*command: str) -> str:
        try:
            return subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "none"

    return {
        "card": said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "commit": commit or said("git", "rev-parse", "--short", "HEAD"),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for results and logs")
    parser.add_argument("--data", type=Path, required=True, help="folder with coco/ and camvid/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="in this order")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds for everything")
    parser.add_argument("--camvid", type=float, default=240, help="seconds of a training, at most")
    parser.add_argument("--together", action="store_true", help="both trainings at the same time")
    parser.add_argument("--overrides", nargs="+", default=[], help="more of train.py for both trainings")
    parser.add_argument("--commit", help="where there is no git")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this out")
    options = parser.parse_args()
    options.out, options.data = options.out.absolute(), options.data.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
