"""Train a segmentation model on a COCO-format data set until the time is up.

  python train.py data.root=/data/coco
  python train.py data=custom data.images=photos data.annotations=photos.json trainer.max_time=1h
  python train.py -m optimizer.lr=1e-4,3e-4,1e-3 data=shapes trainer.max_epochs=5     # three runs

trainer.max_time (10m, 6h, 1d, 01:30:00; null: no limit) counts from the start to the last file.
Any line below can be set on the command line. Where it says "model=unet", other files of
conf/model/ can be chosen, and model._target_=my.package.Net names a class of your own.
"""

from omegaconf import DictConfig

from cocoseg.budget.open_run import open_run
from cocoseg.cli import program, resolve_config
from cocoseg.commands.from_run import keep_own_places
from cocoseg.config import Config


@program("train")
def main(cfg: DictConfig) -> float | None:
    config = resolve_config(keep_own_places(cfg), Config)
    with open_run(cfg, config) as run:
        from cocoseg.training.recipe import train  # torch takes seconds to import

        return train(config, run)


if __name__ == "__main__":
    main()
