"""Gain of further processes: images/s of whole trainings, on one CPU thread per process.

    python benchmarks/ddp.py                              # the built-in shapes
    python benchmarks/ddp.py --rounds 5 -- data=custom data.images=… data.annotations=… model.base_channels=16
    python benchmarks/ddp.py --accelerator gpu --devices 1 2 4 8 -- data.root=/data/coco

A step has the same images, split among the processes. Steps are counted from the sixth on; the numbers of
processes take turns. `share` compares with the speed of the first row times the number of processes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

ROOT = Path(__file__).parents[1]
WARM_UP = 5  # steps
SHAPES = ("data=shapes", "data.image_size=[128,128]", "model.base_channels=16", "model.depth=3")


class Stopwatch(L.Callback):
    """Writes the seconds per step of a training, once it is under way, to a file."""

    def __init__(self, file: str):
        self.file = Path(file)
        self.begin = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step in (WARM_UP, trainer.max_steps) and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        if trainer.global_step == WARM_UP:
            self.begin = time.perf_counter()
        if trainer.global_step == trainer.max_steps and trainer.is_global_zero:
            seconds = time.perf_counter() - self.begin
            self.file.write_text(str(seconds / (trainer.max_steps - WARM_UP)))


def seconds_per_step(devices: int, options: argparse.Namespace, folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        file = Path(run_dir, "seconds")
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *(f"trainer={'ddp' if devices > 1 else 'default'}", f"trainer.accelerator={options.accelerator}"),
            *(f"trainer.devices={devices}", f"data.batch_size={options.batch // devices}"),
            *("trainer.max_time=null", f"trainer.max_steps={WARM_UP + options.steps}"),
            *(
                "trainer.limit_val_batches=1",
                f"run_dir={run_dir}/run",
                f"data.prepared_dir={folder}/prepared",
            ),
            *("+callbacks.stopwatch._target_=ddp.Stopwatch", f"+callbacks.stopwatch.file={file}"),
            *(options.overrides or SHAPES),
        ]
        paths = [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if options.accelerator == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        return float(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="images per step, of all processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("overrides", nargs="*", help="of train.py; after --")
    options = parser.parse_args()
    times: dict[int, list[float]] = {devices: [] for devices in options.devices}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for devices in options.devices:
                times[devices].append(seconds_per_step(devices, options, Path(folder)))
    first = options.devices[0]
    print("| processes | images on each | images/s | times | share | rounds |")
    print("|---|---|---|---|---|---|")
    for devices, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(times[first], seconds, strict=True))
        speed = options.batch / statistics.median(seconds)
        rounds = ", ".join(f"{options.batch / value:.3g}" for value in seconds)
        share = ratio * first / devices
        print(
            f"| {devices} | {options.batch // devices} | {speed:.3g} | {ratio:.2f} | {share:.0%} | {rounds} |"
        )


if __name__ == "__main__":
    main()
