"""Gain of a learning rate that follows the wall clock: several schedules within the same time limit.

    python benchmarks/schedules.py --budgets 120 300 600 -- data=custom data.images=… data.annotations=… …

`constant` never changes the rate. `guessed` falls linearly to zero over a number of steps that is guessed
beforehand, here twice and half the actual number. `clock` is cocoseg's. All four run side by side and share
the cores, so that other load slows them alike. The table shows validation mIoU of the exported model.
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
from training_runs import limit, train_once

from cocoseg.workers import available_cores

CALIBRATION = 60  # seconds of a first run, which tells how many steps come


class GuessedRate(L.Callback):
    """A straight line to zero over a guessed number of steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        share = max(0.0, 1 - trainer.global_step / self.steps)
        for group, base in zip(trainer.optimizers[0].param_groups, pl_module.base_rates[0], strict=True):
            group["lr"] = base * share


def guessed(steps: int) -> list[str]:
    target = "+callbacks.rate._target_=schedules.GuessedRate"
    return ["schedule.name=constant", target, f"+callbacks.rate.steps={max(1, steps)}"]


def side_by_side(
    folder: Path, seconds: int, seed: int, overrides: list[str], ways: dict[str, list[str]]
) -> dict[str, dict[str, float]]:
    """Train in every way at once; score and steps of each."""
    threads = max(1, available_cores() // len(ways))

    def run(number: int, extra: list[str]) -> dict[str, float]:
        return train_once(
            [*overrides, *extra, f"seed={seed}", *limit(seconds)], folder / str(number), threads
        )

    with ThreadPoolExecutor(len(ways)) as pool:
        return dict(zip(ways, pool.map(run, range(len(ways)), ways.values()), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=[120, 300, 600], help="seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="+", help="of train.py; after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copies = {str(number): [] for number in range(4)}
        first = side_by_side(Path(folder), CALIBRATION, 0, options.overrides, copies)
    rate = statistics.mean(result["steps"] for result in first.values()) / CALIBRATION
    print("| budget s | schedule | steps | mIoU, mean | each seed |")
    print("|---|---|---|---|---|")
    for seconds in options.budgets:
        steps = round(rate * seconds)
        ways = {
            "clock": ["schedule.name=linear"],
            "constant": ["schedule.name=constant"],
            f"guessed: {2 * steps} steps": guessed(2 * steps),
            f"guessed: {steps // 2} steps": guessed(steps // 2),
        }
        runs = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(side_by_side(Path(folder), seconds, seed, options.overrides, ways))
        rate = statistics.mean(run["clock"]["steps"] for run in runs) / seconds
        for name in ways:
            scores = [run[name]["miou"] for run in runs]
            print(
                f"| {seconds} | {name} | {statistics.mean(run[name]['steps'] for run in runs):.0f} "
                f"| {statistics.mean(scores):.3f} | {', '.join(f'{score:.3f}' for score in scores)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
