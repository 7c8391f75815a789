"""Score a model: IoU with 95 % intervals, boundaries, calibration, and the images that score lowest.

  python evaluate.py checkpoint=outputs/train/RUN/segmentation_model.pth
  python evaluate.py checkpoint=net.pth split=all data=custom data.images=a data.annotations=a.json
  python evaluate.py checkpoint=outputs/train/RUN/checkpoints/last.ckpt tta=true

The images are those that the training held out (config.yaml beside the model says which), unless
data, experiment, data.images, data.annotations or data.masks is given; data.root says where they
are now.
split=val refuses images that were trained on; the other splits warn of them. All settings of
train.py are accepted too.
"""

import signal

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config
from cocoseg.config import EvaluateConfig
from cocoseg.config_cross_checks import check_checkpoint
from cocoseg.errors import CocosegError
from cocoseg.evaluation.training_settings import use_training_data
from cocoseg.overrides import command, is_overridden, key_of
from cocoseg.run_folder import open_folder


@program("evaluate")
def main(cfg: DictConfig) -> None:
    check_checkpoint(cfg.checkpoint)
    if cfg.from_run is not None:
        raise CocosegError(
            "from_run: the settings come from the run that made the checkpoint; leave from_run out"
        )
    keys = list(map(key_of, command().overrides))
    cfg = use_training_data(cfg, keys)
    config = resolve_config(cfg, EvaluateConfig)
    height, width = config.data.image_size
    size = (height, width) if is_overridden("data.image_size") else None
    with open_folder(cfg, "evaluate", key="run_dir") as folder:
        from cocoseg.evaluation.evaluate import evaluate  # here, so that --help and mistakes answer at once
        from cocoseg.workers import stop_in_order

        with stop_in_order(signal.SIGINT, signal.SIGTERM):
            evaluate(config, folder.path, image_size=size, begin=folder.begin)


if __name__ == "__main__":
    main()
