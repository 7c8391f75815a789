"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

from omegaconf import DictConfig

from cocoseg.budget.run import open_run
from cocoseg.cli import program, resolve_config


@program("train")
def main(cfg: DictConfig) -> float | None:
    config = resolve_config(cfg)
    with open_run(cfg, config) as run:
        from cocoseg.training.recipe import (
            train,  # here, so that --help and mistakes answer at once: torch is slow
        )

        return train(config, run)


if __name__ == "__main__":
    main()
