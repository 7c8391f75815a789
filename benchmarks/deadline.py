"""Deadlines: planned and actual wall time of whole `train.py` processes.

    python benchmarks/deadline.py                          # the built-in shapes, budgets of 60 to 300 s
    python benchmarks/deadline.py --seconds 60 600 -- data=custom data.images=… data.annotations=…

`used` is the share of the budget that had passed when the process ended, `late` the seconds after the limit
(negative: before it), `trained` the share spent on steps and on loading their data, `reserve` the seconds
kept for the end when training stopped. The slow validation has ten times as many images as the training.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from cocoseg.budget.budget import Budget

ROOT = Path(__file__).parents[1]
SHAPES = ("data=shapes", "data.image_size=[64,64]", "model.base_channels=8", "model.depth=3")
SLOW = ("data.shapes.images=1200", "data.val_fraction=0.9")


def run(seconds: float, overrides: list[str], folder: Path) -> dict[str, float]:
    limit = timedelta(seconds=seconds)
    clock = f"00:{limit.seconds // 3600:02d}:{limit.seconds // 60 % 60:02d}:{limit.seconds % 60:02d}"
    run_dir = folder / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"trainer.max_time={clock}",
        f"run_dir={run_dir}",
        *overrides,
    ]
    begin = time.monotonic()
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - begin
    ledger = json.loads((run_dir / "budget.json").read_bytes())
    spent, budget = ledger["spent"], Budget(seconds)
    budget.resume(ledger)
    assert (run_dir / "segmentation_model.pth").is_file()
    return {
        "wall": wall,
        "used": wall / seconds,
        "late": wall - seconds,
        "trained": (spent["computing"] + spent["loading"]) / wall,
        "validated": spent["validating"] / wall,
        "reserve": budget.seconds_reserved(),
        "step": budget.expected["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 120, 300])
    parser.add_argument("overrides", nargs="*", help="of train.py; after --")
    options = parser.parse_args()
    print("| data | planned s | actual s | late s | used | trained | validated | reserve s | step s |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [("given", options.overrides)] if options.overrides else [("shapes", [*SHAPES])]
    for name, overrides in cases:
        for seconds in options.seconds:
            report(name, seconds, overrides)
    if not options.overrides:
        report("shapes, slow validation", min(options.seconds), [*SHAPES, *SLOW])


def report(name: str, seconds: float, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        row = run(seconds, overrides, Path(folder))
    print(
        f"| {name} | {seconds:.0f} | {row['wall']:.1f} | {row['late']:+.1f} | {row['used']:.1%} "
        f"| {row['trained']:.1%} | {row['validated']:.1%} | {row['reserve']:.1f} | {row['step']:.3f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
