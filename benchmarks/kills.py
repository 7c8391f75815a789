"""Budget over all attempts at runs that are killed again and again.

    python benchmarks/kills.py            # 4 runs of 120 s, 5 kills each at seeded random moments

Every run is started with `resume=auto`, killed with SIGKILL, and started again by the same command; after the
last kill it runs to its end. `running` is the wall time in which a process of the run was alive, `budget` the
time used in its ledger, `jump` the largest fall of its progress in TensorBoard's record.
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
SHAPES = ("data=shapes", "data.image_size=[64,64]", "model.base_channels=8", "model.depth=3")


def command(run_dir: Path, seconds: int, every: int) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "train.py"),
        *SHAPES,
        f"run_dir={run_dir}",
        "resume=auto",
        f"trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}",
        f"budget.checkpoint_every=00:00:00:{every:02d}",
        "trainer.log_every_n_steps=1",
    ]


def killed_run(folder: Path, seconds: int, every: int, kills: int, rng: random.Random) -> dict[str, float]:
    run_dir = folder / "run"
    running, hits = 0.0, 0
    for attempt in range(kills + 1):
        begin = time.monotonic()
        process = subprocess.Popen(
            command(run_dir, seconds, every),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=rng.uniform(0.5, 1.6 * seconds / kills) if attempt < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            hits += 1
        running += time.monotonic() - begin
        if process.returncode == 0:
            break
    ledger = json.loads((run_dir / "budget.json").read_bytes())
    model = torch.load(run_dir / "segmentation_model.pth", weights_only=True)
    assert model["state_dict"]
    return {
        "kills": hits,
        "exit": process.returncode,
        "running": running,
        "late": running - seconds,
        "budget": ledger["used"],
        "jump": largest_fall(run_dir),
    }


def largest_fall(run_dir: Path) -> float:
    """The largest fall of `wall_clock/progress` from one record to the next, in the order of writing."""
    points = []
    for file in run_dir.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        if "wall_clock/progress" in events.Tags()["scalars"]:
            points += [(point.wall_time, point.value) for point in events.Scalars("wall_clock/progress")]
    values = [value for _, value in sorted(points)]
    return max((before - after for before, after in itertools.pairwise(values)), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--every", type=int, default=5, help="seconds between checkpoints")
    options = parser.parse_args()
    rng = random.Random(0)
    print("| run | kills | exit | running s | late s | budget s | jump of progress |")
    print("|---|---|---|---|---|---|---|")
    for number in range(1, options.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            row = killed_run(Path(folder), options.seconds, options.every, options.kills, rng)
        print(
            f"| {number} | {row['kills']} | {row['exit']} | {row['running']:.1f} | {row['late']:+.1f} "
            f"| {row['budget']:.1f} | {row['jump']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
