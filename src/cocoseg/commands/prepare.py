"""Choose images of a COCO-format data set, fetch those that are missing, draw their label masks.

  python prepare.py                           # COCO 2017 in data/coco, fetched where it is missing
  python prepare.py data=custom data.images=photos data.annotations=photos.json
  python prepare.py data.root=/data/coco data.subset.size=500 masks.encoding=x100

data=masks data.images=… data.masks=… takes masks as image files in place of annotations.
train.py prepares by itself; this program shows beforehand what it will train on. Every other
setting of train.py is accepted too (experiment=… for one), so that one set of overrides fits both.
"""

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config
from cocoseg.commands.from_run import keep_own_places
from cocoseg.config import Config
from cocoseg.run_folder import open_folder


@program("prepare")
def main(cfg: DictConfig) -> None:
    config = resolve_config(keep_own_places(cfg), Config, may_download=True)

    from cocoseg.preparation.prepare import prepare

    with open_folder(cfg, "prepare", key="run_dir") as folder:
        prepare(config, may_download=True, begin=folder.begin)


if __name__ == "__main__":
    main()
