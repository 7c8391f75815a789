"""Segment images of any size and kind: masks, overlays, a page to look through them.

  python predict.py checkpoint=outputs/train/RUN/segmentation_model.pth input=photo.jpg
  python predict.py checkpoint=model.pth input=photos output=segmented     # again: only what is new
  python predict.py checkpoint=model.pth 'input=tiles/**/*.tif' scale=1 coco_json=true
  python predict.py checkpoint=model.pth input=photos output=labels coco_dataset=rle   # to train on

An image that can't be read is reported and left out; the exit code is 1 then.
"""

import os

from omegaconf import DictConfig

from cocoseg.cli import program, resolve_config
from cocoseg.config import PredictConfig
from cocoseg.run_folder import open_folder


@program("predict")
def main(cfg: DictConfig) -> None:
    config = resolve_config(cfg, PredictConfig)
    # Before torch is loaded: threads that spin while they wait take the cores from those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with open_folder(cfg, "predict", key="output") as folder:
        # Here, so that --help and mistakes in the configuration answer at once.
        from cocoseg.inference.predict_folder import predict_folder

        predict_folder(config, folder.path, begin=folder.begin)


if __name__ == "__main__":
    main()
