"""Trainings by train.py, each a process of its own, and their scores."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class RunFailedError(Exception):
    """A training that ended with an error."""


def limit(seconds: int | None = None, steps: int | None = None) -> list[str]:
    """Overrides that end a training after a time, or after a number of steps."""
    if seconds is not None:
        return [f"trainer.max_time=00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"]
    every = max(1, steps // 6)
    return ["trainer.max_time=null", f"trainer.max_steps={every * 6}", f"trainer.val_check_interval={every}"]


def train_once(overrides: list[str], run_dir: Path, threads: int) -> dict[str, float]:
    """Train, and return validation mIoU of the exported model, steps and seconds.

    Raises:
        RunFailedError: train.py ended with an error.
    """
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    begin = time.monotonic()
    process = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides, f"run_dir={run_dir}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise RunFailedError(f"train.py ended with {process.returncode}: {process.stderr.strip()[-500:]}")
    line = next(line for line in (run_dir / "train.log").read_text().splitlines() if "trained " in line)
    scores = json.loads((run_dir / "metrics.json").read_bytes())
    return {"miou": scores["miou"], "steps": int(line.split()[-2]), "seconds": time.monotonic() - begin}
