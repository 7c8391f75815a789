"""Settings of `evaluate.py` beside those of a training, and their checks. No torch, no Hydra."""

from dataclasses import dataclass
from pathlib import Path

from cocoseg.config import Config
from cocoseg.errors import CocosegError

SPLITS = ("val", "train", "all")
SCORE_AT = ("original", "network")
LABEL_RULES = ("same", "match")


@dataclass
class EvaluateConfig(Config):
    """All settings of `evaluate.py`."""

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
