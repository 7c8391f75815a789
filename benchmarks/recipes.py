"""Quality of several recipes in the same time; they run at once and share the machine.

    python benchmarks/recipes.py --seconds 300 --way "plain" --way "weights loss.class_weights=enet" \\
        -- data=custom data.images=… data.annotations=… …

Each `--way` is a name and the overrides that it adds to those after `--`. `--together` is the number of them
that run side by side and share the cores. The table shows validation mIoU of the exported model, a mean over
the classes that occur.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from schedules import side_by_side


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", action="append", required=True, help="name, then overrides")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--together", type=int, default=2)
    parser.add_argument("overrides", nargs="*", help="of train.py; after --")
    options = parser.parse_args()
    ways = {name: extra for name, *extra in map(str.split, options.way)}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    print("| recipe | steps | mIoU, mean | each seed |")
    print("|---|---|---|---|")
    names = list(ways)
    for start in range(0, len(names), options.together):
        group = names[start : start + options.together]
        for seed in range(options.seeds):
            chosen = {name: ways[name] for name in group}
            with tempfile.TemporaryDirectory() as folder:
                results = side_by_side(Path(folder), options.seconds, seed, options.overrides, chosen)
            for name, result in results.items():
                runs[name].append(result)
        for name in group:
            scores = [run["miou"] for run in runs[name]]
            steps = statistics.mean(run["steps"] for run in runs[name])
            each = ", ".join(f"{score:.3f}" for score in scores)
            print(f"| {name} | {steps:.0f} | {statistics.mean(scores):.3f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
