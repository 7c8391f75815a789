"""What the clock-driven learning rate is worth: one net, one data set, one time limit, several schedules.

    python benchmarks/schedules.py --budgets 20 40 80 -- data=custom data.images=… data.annotations=… …

`constant` never changes the rate; `guessed` falls to zero in a straight line over a number of steps that had
to be guessed beforehand, here twice and half as many as then came; `clock` is ours. All in one multirun, so
that every job's time begins when it begins; validation mIoU of the exported model, three seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L

ROOT = Path(__file__).parents[1]


class GuessedRate(L.Callback):
    """A straight line to zero over a guessed number of steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        share = max(0.0, 1 - trainer.global_step / self.steps)
        for group, base in zip(trainer.optimizers[0].param_groups, pl_module.base_rates[0], strict=True):
            group["lr"] = base * share


def sweep(folder: Path, seconds: int, seeds: int, overrides: list[str], extra: list[str]) -> list[dict]:
    """One multirun over the seeds; scores and steps of each."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        f"seed={','.join(map(str, range(seeds)))}",
        f"trainer.max_time=00:00:{seconds // 60:02d}:{seconds % 60:02d}",
        f"hydra.sweep.dir={folder}",
        *overrides,
        *extra,
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    results = []
    for job in range(seeds):
        scores = json.loads((folder / str(job) / "metrics.json").read_bytes())
        line = next(
            line for line in (folder / str(job) / "train.log").read_text().splitlines() if "steps" in line
        )
        results.append({"miou": scores["miou"], "steps": int(line.split()[-2])})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=[120, 300, 600], help="seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="+", help="of train.py; after --")
    options = parser.parse_args()
    print("| budget s | schedule | steps | mIoU, mean | each seed |")
    print("|---|---|---|---|---|")
    for seconds in options.budgets:
        steps = 0
        for name in ("clock", "constant", "guessed, twice too long", "guessed, half as long"):
            extra = ["schedule.name=linear" if name == "clock" else "schedule.name=constant"]
            if name.startswith("guessed"):
                guess = max(1, steps * 2 if "twice" in name else steps // 2)
                extra += ["+callbacks.rate._target_=schedules.GuessedRate", f"+callbacks.rate.steps={guess}"]
            with tempfile.TemporaryDirectory() as folder:
                results = sweep(Path(folder), seconds, options.seeds, options.overrides, extra)
            if name == "clock":
                steps = round(statistics.mean(result["steps"] for result in results))
            scores = [result["miou"] for result in results]
            print(
                f"| {seconds} | {name} | {statistics.mean(result['steps'] for result in results):.0f} "
                f"| {statistics.mean(scores):.3f} | {', '.join(f'{score:.3f}' for score in scores)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
