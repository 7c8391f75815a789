"""Predict images: `python predict.py checkpoint=segmentation_model.pth input=photos`, or `--help`."""

import os

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config, run_folder, start_run
from cocoseg.config import PredictConfig
from cocoseg.output_folder import alone, require_own


@program("predict")
def main(cfg: DictConfig) -> None:
    config = resolve_config(cfg, PredictConfig)
    output = run_folder()
    require_own(output, cfg, "output")
    # Before torch is loaded: threads that spin while they wait take the cores from those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Imported here, so that --help and mistakes in the configuration answer at once.
    from cocoseg.predict_folder import plan_folder, predict_folder

    with alone(output, "output"):
        plan = plan_folder(config, output)  # refuses before anything is written
        start_run(cfg, overwrite=True)
        predict_folder(config, output, plan)


if __name__ == "__main__":
    main()
