"""Score a model: `python evaluate.py checkpoint=outputs/train/…/segmentation_model.pth`, or `--help`."""

import hydra
from omegaconf import DictConfig

from cocoseg.cli import entry_point, is_typed, run_folder, start_run, typed
from cocoseg.command import command, key_of
from cocoseg.config_evaluate import check_checkpoint, check_evaluation
from cocoseg.output_folder import alone, require_own
from cocoseg.run_settings import as_trained, has_other_data, require_data, run_settings


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@entry_point
def main(cfg: DictConfig) -> None:
    check_checkpoint(cfg.checkpoint)
    keys = list(map(key_of, command().overrides))
    trained = run_settings(cfg.checkpoint, needed=not has_other_data(keys))
    cfg = as_trained(cfg, trained, keys)
    if trained is None and not has_other_data(keys):
        require_data(cfg)
    config = typed(cfg)
    check_evaluation(config)
    folder = run_folder()
    require_own(folder, cfg, "run_dir")

    from cocoseg.evaluate import evaluate
    from cocoseg.parallel import sigterm_as_exit

    size = tuple(config.data.image_size) if is_typed("data.image_size") else None
    with alone(folder, "run_dir"), sigterm_as_exit():
        start_run(cfg, overwrite=True)
        evaluate(config, folder, image_size=size)


if __name__ == "__main__":
    main()
