"""Score a model: `python evaluate.py checkpoint=outputs/train/…/segmentation_model.pth`, or `--help`."""

from omegaconf import DictConfig

from cocoseg.checks import check_checkpoint
from cocoseg.cli import program, resolve_config, run_folder, start_run
from cocoseg.config import EvaluateConfig
from cocoseg.output_folder import alone, require_own
from cocoseg.overrides import command, is_overridden, key_of
from cocoseg.run_settings import as_trained, has_other_data, require_data, run_settings


@program("evaluate")
def main(cfg: DictConfig) -> None:
    check_checkpoint(cfg.checkpoint)
    keys = list(map(key_of, command().overrides))
    trained = run_settings(cfg.checkpoint, needed=not has_other_data(keys))
    cfg = as_trained(cfg, trained, keys)
    if trained is None and not has_other_data(keys):
        require_data(cfg)
    config = resolve_config(cfg, EvaluateConfig)
    folder = run_folder()
    require_own(folder, cfg, "run_dir")

    from cocoseg.evaluate import evaluate
    from cocoseg.parallel import sigterm_as_exit

    size = tuple(config.data.image_size) if is_overridden("data.image_size") else None
    with alone(folder, "run_dir"), sigterm_as_exit():
        start_run(cfg, overwrite=True)
        evaluate(config, folder, image_size=size)


if __name__ == "__main__":
    main()
