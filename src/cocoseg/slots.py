"""What jobs side by side share: GPUs, a list of them for each, and processor cores. No torch."""

import os
import subprocess
from contextlib import suppress

from cocoseg.cores import available_cores

LIST_GPUS = ("nvidia-smi", "--list-gpus")


def jobs_side_by_side(n_jobs: int | None) -> int:
    """How many: as asked for; None: one per GPU, or one; -1: one per core, as joblib has it."""
    if n_jobs is None:
        return max(1, len(visible_gpus()))
    return n_jobs if n_jobs > 0 else available_cores()


def visible_gpus() -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(LIST_GPUS, capture_output=True, text=True, timeout=30, check=True).stdout
        count = sum(line.startswith("GPU ") for line in listed.splitlines())
        return [str(number) for number in range(count)]
    return []
