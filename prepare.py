"""Choose images, fetch what is missing, draw masks: `python prepare.py`, or `--help`."""

import hydra
from omegaconf import DictConfig

from cocoseg.cli import entry_point, start_run, typed


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
@entry_point
def main(cfg: DictConfig) -> None:
    config = typed(cfg, may_download=True)
    start_run(cfg, overwrite=True)

    from cocoseg.prepare import check_annotations, prepare

    if config.prepare.check_only:
        check_annotations(config, may_download=True)
    else:
        prepare(config, may_download=True)


if __name__ == "__main__":
    main()
