"""What `evaluate.py` is told beside the settings of a training, and the checks of it. No torch, no Hydra."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocoseg.config import Config
from cocoseg.errors import CocosegError

log = logging.getLogger(__name__)

SPLITS = ("val", "train", "all")
SCORE_AT = ("original", "network")
LABEL_RULES = ("same", "match")


@dataclass
class EvaluateConfig(Config):
    """Everything that `evaluate.py` is told."""

    checkpoint: str | None = None  # segmentation_model.pth or a .ckpt file
    split: str = "val"  # or: train, all
    score_at: str = "original"  # the size that is quoted; or: network, that of training alone
    tta: bool = False  # average over flips and scales, too
    labels: str = "same"  # as the data's; or match: by name
    save_predictions: bool = False  # as masks
    gallery: bool = True  # a page to look through
    network: str | None = None  # class of a network that is none of ours


def check_checkpoint(checkpoint: str | None) -> None:
    """Raises CocosegError where the file is not given or not there."""
    if checkpoint is None:
        raise CocosegError("checkpoint is not given: checkpoint=<segmentation_model.pth>")
    if not Path(checkpoint).is_file():
        raise CocosegError(f"checkpoint: no file {checkpoint}")


def check_evaluation(config: EvaluateConfig) -> None:
    """Raises CocosegError where one of these settings is out of range; names the key."""
    for key, known in (("split", SPLITS), ("score_at", SCORE_AT), ("labels", LABEL_RULES)):
        if getattr(config, key) not in known:
            raise CocosegError(f"{key} is {getattr(config, key)!r}; it must be one of {', '.join(known)}")


def check_held_out(config: EvaluateConfig, trained: Mapping[str, Any] | None) -> None:
    """Refuse to call validation images what the model was trained on, as far as settings tell: for runs that
    did not note their images, see trained_on.py.

    Args:
        config: of the evaluation.
        trained: the settings of the run that trained the model; None where they are not known.

    Raises:
        CocosegError: the same annotations are split in another way than for the training.
    """
    if config.split != "val" or config.data.val_annotations is not None:
        return
    if trained is None:
        log.warning(
            "warning: there is no config.yaml beside the checkpoint, so it can't be told whether these "
            "validation images were trained on"
        )
        return
    theirs: Mapping[str, Any] = trained["data"]
    if Path(config.data.annotations).name != Path(theirs["annotations"]).name:
        return
    if theirs["val_annotations"] is not None:
        raise CocosegError(
            "split=val would hold out images of the file that the model was trained on as a whole "
            f"({theirs['annotations']}); set data.val_annotations"
        )
    ours = vars(config.data.subset)
    pairs = {
        "seed": (config.seed, trained["seed"]),
        "data.val_fraction": (config.data.val_fraction, theirs["val_fraction"]),
        **{f"data.subset.{key}": (value, theirs["subset"].get(key)) for key, value in ours.items()},
    }
    for key, (here, there) in pairs.items():
        if here != there:
            raise CocosegError(
                f"{key} is {here!r} here and was {there!r} in the training: some of these validation images "
                "were trained on; leave that out, or take split=all for images that took no part in training"
            )
