"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from cocoseg.budget import Budget
from cocoseg.cli import program, refuse_several_in, resolve_config, run_folder, start_run
from cocoseg.config import Config
from cocoseg.ledger import LEDGER, kept_in
from cocoseg.outcome import objective
from cocoseg.overrides import command, is_overridden
from cocoseg.ranks import following, leads
from cocoseg.resuming import claimed, continue_run


@program("train")
def main(cfg: DictConfig) -> float | None:
    config = resolve_config(cfg)
    refuse_several_in(config)
    if not leads(config.trainer):  # of several processes on several devices this is not the first one
        with following():
            run(config, run_folder(), Budget(None))
    goes_on = config.ckpt_path is not None or config.resume is not None
    run_dir = start_run(cfg, overwrite=goes_on)
    with claimed(run_dir):  # before the ledger is read, which whoever was there may still have written to
        budget = continue_run(config, run_dir, limit_is_typed=is_overridden("trainer.max_time"))
        with kept_in(run_dir / LEDGER, budget):  # a kill during the imports counts, too
            exit_code = run(config, run_dir, budget)
    return objective(run_dir, exit_code)


def run(config: Config, run_dir: Path, budget: Budget) -> int:
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores
    # a step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Imported here, so that --help and mistakes in the configuration answer at once.
    from cocoseg.training import train

    return train(config, run_dir, budget, command())


if __name__ == "__main__":
    main()
