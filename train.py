"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config
from cocoseg.run import open_run


@program("train")
def main(cfg: DictConfig) -> float | None:
    config = resolve_config(cfg)
    with open_run(cfg, config) as run:
        from cocoseg.training import train  # here, so that --help and mistakes answer at once: torch is slow

        return train(config, run)


if __name__ == "__main__":
    main()
