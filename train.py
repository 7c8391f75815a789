"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

import os
import sys

import hydra
from omegaconf import DictConfig

from cocoseg.budget import LEDGER, kept_in
from cocoseg.cli import command, entry_point, is_typed, start_run, typed
from cocoseg.resuming import claimed, continue_run


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@entry_point
def main(cfg: DictConfig) -> None:
    config = typed(cfg)
    goes_on = config.ckpt_path is not None or config.resume is not None
    run_dir = start_run(cfg, overwrite=goes_on)
    with claimed(run_dir):  # before the ledger is read, which whoever was there may still have written to
        budget = continue_run(config, run_dir, limit_is_typed=is_typed("trainer.max_time"))
        with kept_in(run_dir / LEDGER, budget):  # a kill during the imports counts, too
            # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores
            # a step took six times as long (docs/LOG.md).
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

            # Imported here, so that --help and mistakes in the configuration answer at once.
            from cocoseg.training import train

            exit_code = train(config, run_dir, budget, command())
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    main()
