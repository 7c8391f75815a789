"""Choose images, fetch what is missing, draw masks: `python prepare.py`, or `--help`."""

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config
from cocoseg.run_folder import open_folder


@program("prepare")
def main(cfg: DictConfig) -> None:
    config = resolve_config(cfg, may_download=True)

    from cocoseg.preparation.prepare import check_annotations, prepare

    if config.prepare.check_only:
        check_annotations(config, may_download=True)
        return
    with open_folder(cfg, "prepare", key="run_dir") as folder:
        folder.begin()
        prepare(config, may_download=True)


if __name__ == "__main__":
    main()
