"""Overhead of a training: images/s of whole trainings against those of bare steps.

    python benchmarks/pipeline.py -- data=custom data.images=… data.annotations=… augment=default

Both run in one process and take turns, with network, batch, precision and optimizer of the overrides: bare
steps on one random batch on the device, as in `step.py`, and steps of `train.py`'s recipe, from the second
logged one on. The last table shows the rest of the time by its parts.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from step import Stepper, seconds, wait

from cocoseg.budget.budget import Budget
from cocoseg.budget.open_run import Run
from cocoseg.cli import resolve_config
from cocoseg.config import Config
from cocoseg.data.augment import Augment
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.networks.device import resolve_precision
from cocoseg.training.build import build_module
from cocoseg.training.console import quiet_lightning
from cocoseg.training.recipe import train

ROOT = Path(__file__).parents[1]
WARM_UP = 5  # steps


class Stopwatch(L.Callback):
    """Seconds per step of a training, once it is under way.

    Attributes:
        latest: the one that the recipe has built last.
    """

    latest: ClassVar["Stopwatch"]

    def __init__(self) -> None:
        type(self).latest = self
        self.begin = self.end = 0.0
        self.steps = -WARM_UP

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.steps += 1
        if self.steps == 0:
            wait(pl_module.device)
            self.begin = time.perf_counter()
        if self.steps > 0 and self.steps + WARM_UP == trainer.max_steps:
            wait(pl_module.device)
            self.end = time.perf_counter()

    def seconds(self) -> float:
        return (self.end - self.begin) / self.steps


def composed(overrides: list[str], steps: int, folder: str) -> Config:
    fixed = [
        f"trainer.max_steps={steps + WARM_UP}",
        "trainer.max_time=null",
        "trainer.num_sanity_val_steps=0",
        "trainer.limit_val_batches=1",
        f"trainer.val_check_interval={steps + WARM_UP}",
        f"data.prepared_dir={folder}/prepared",
        "+callbacks.stopwatch._target_=pipeline.Stopwatch",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve_config(compose("train", [*overrides, *fixed]), Config)


def train_once(config: Config, folder: Path) -> tuple[float, Budget]:
    """Seconds per step of a training by the recipe, and where its time went."""
    from pipeline import Stopwatch as BuiltByName  # not the class of this file where it is run as a program

    budget = Budget(None)
    train(config, Run(folder, budget))
    return BuiltByName.latest.seconds(), budget


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200 if torch.cuda.is_available() else 20)
    parser.add_argument("overrides", nargs="+", help="of train.py; after --")
    options = parser.parse_args()
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        config = composed(options.overrides, options.steps, folder)
        data = SegmentationDataModule(config)
        data.prepare_data()
        data.setup("fit")
        settings = resolve_precision(config.trainer)
        torch.backends.cudnn.benchmark = settings["benchmark"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = build_module(config, Run(Path(folder)), data, None)
        bare = Stepper(module.net, device, precision=settings["precision"], fast=True, compiled=False)
        batch = config.data.batch_size
        image = torch.randn(batch, 3, *config.data.image_size, device=device)
        image = image.contiguous(memory_format=torch.channels_last)
        mask = torch.randint(0, len(data.labels), (batch, *config.data.image_size), device=device)
        seconds(bare, image, mask, WARM_UP)
        steps, trainings, ratios = [], [], []
        for number in range(options.rounds):
            before = seconds(bare, image, mask, options.steps)
            training, budget = train_once(config, Path(folder, str(number)))
            after = seconds(bare, image, mask, options.steps)
            steps.append((before + after) / 2)
            trainings.append(training)
            ratios.append(steps[-1] / training)
        print("| | images/s | share |")
        print("|---|---|---|")
        print(f"| bare steps | {batch / statistics.median(steps):.4g} | |")
        print(f"| training | {batch / statistics.median(trainings):.4g} | {statistics.median(ratios):.1%} |")
        print(f"\nRounds: {', '.join(f'{ratio:.1%}' for ratio in ratios)}.\n")
        parts(config, data, device, statistics.median(trainings), budget, options.steps)


def parts(
    config: Config,
    data: SegmentationDataModule,
    device: torch.device,
    training: float,
    budget: Budget,
    steps: int,
) -> None:
    """Print the time of each part of a step beside the network."""
    loader = iter(data.train_dataloader())
    begin = time.perf_counter()
    loaded = [next(loader) for _ in range(min(steps, len(data.train_dataloader())))]
    loading = (time.perf_counter() - begin) / len(loaded)
    image, mask = (part.to(device) for part in loaded[0])
    augment = Augment(config.augment, tuple(config.data.image_size), seed=0)
    augment(image, mask)
    wait(device)
    begin = time.perf_counter()
    for _ in range(10):
        augment(image, mask)
    wait(device)
    augmenting = (time.perf_counter() - begin) / 10
    print("| part of a training step | ms | share |")
    print("|---|---|---|")
    for name, value in (("loading", loading), ("to float, augmenting", augmenting)):
        print(f"| {name} | {value * 1e3:.2f} | {value / training:.1%} |")
    print(f"\nBy the run's own ledger: {budget.spent}.")


if __name__ == "__main__":
    main()
