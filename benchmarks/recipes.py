"""Quality of several recipes in the same time or in the same number of steps.

    python benchmarks/recipes.py --seconds 300 --way "plain" --way "weights loss.class_weights=enet" \\
        --on "one data.annotations=…" --on "two data.annotations=…" -- data=custom data.images=… …

Each `--way` is a name and the overrides that it adds to those after `--`; each `--on` likewise, for the data:
every way is trained on each. Trainings take turns (way a, way b, way a, …), `--together` of them at a time,
which share the cores. With `--seconds` they should have the machine for themselves; with `--steps` scores do
not depend on its speed. The table shows validation mIoU of the exported model, a mean over the classes that
occur.
"""

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training_runs import RunFailedError, limit, train_once

from cocoseg.workers import available_cores


def main() -> None:
    options = arguments()
    ways, data = (named(texts) for texts in (options.way, options.on or ["all"]))
    threads = max(1, available_cores() // options.together)
    jobs = [(seed, on, way) for seed in range(options.seeds) for on in data for way in ways]
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(options.together) as pool,
        Path(options.json or f"{folder}/runs").open("a") as record,
    ):

        def run(number: int, job: tuple[int, str, str]) -> dict[str, Any]:
            seed, on, way = job
            ending = limit(options.seconds, options.steps)
            overrides = [f"seed={seed}", *options.overrides, *data[on], *ways[way], *ending]
            result = {"way": way, "on": on, "seed": seed}
            try:
                result |= train_once(overrides, Path(folder, str(number)), threads)
            except RunFailedError as error:
                result["error"] = str(error)
            record.write(json.dumps(result) + "\n")
            record.flush()
            return result

        results = list(pool.map(run, range(len(jobs)), jobs))
    print(f"| recipe | steps | mIoU, mean | {' | '.join(data)} |")
    print("|---|---|---|" + "---|" * len(data))
    for way in ways:
        print(row(way, [result for result in results if result["way"] == way], list(data)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", action="append", required=True, help="name, then overrides")
    parser.add_argument("--on", action="append", help="name, then overrides")
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--seconds", type=int)
    end.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--json", help="file that gets a line for each run as soon as it ends")
    parser.add_argument("overrides", nargs="*", help="of train.py; after --")
    return parser.parse_args()


def named(texts: list[str]) -> dict[str, list[str]]:
    return {name: overrides for name, *overrides in map(str.split, texts)}


def row(way: str, runs: list[dict[str, Any]], data: list[str]) -> str:
    done = [run for run in runs if "error" not in run]
    if len(done) < len(runs):
        error = next(run["error"] for run in runs if "error" in run)
        return f"| {way} | failed | {' '.join(error.split())[-200:]} |"
    means = statistics.mean(run["miou"] for run in done)
    steps = statistics.mean(run["steps"] for run in done)
    each = (", ".join(f"{run['miou']:.3f}" for run in done if run["on"] == on) for on in data)
    return f"| {way} | {steps:.0f} | {means:.3f} | {' | '.join(each)} |"


if __name__ == "__main__":
    main()
