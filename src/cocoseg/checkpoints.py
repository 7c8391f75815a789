"""The two checkpoints of a run: the best one by validation mIoU, and the last one."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from cocoseg.files import whole_file


class LastCheckpoint(ModelCheckpoint):
    """`last.ckpt`: where training stands, after every epoch, at the end, and where an exception ends it.

    A callback of its own, because `save_last=True` beside a monitor leaves a stale file.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, filename="last", save_on_exception=True, enable_version_counter=False)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the highest `val/miou`. A run that goes on from a checkpoint takes its best along."""

    def __init__(self, folder: Path):
        super().__init__(
            folder, filename="best", monitor="val/miou", mode="max", enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's own forgets the score where the folder is another, so any model would be best."""
        before = Path(state_dict["best_model_path"])
        if not before.is_file():
            return
        here = Path(self.dirpath, "best.ckpt")
        if before != here:
            with whole_file(here) as temporary:
                shutil.copyfile(before, temporary)
        score = state_dict["best_model_score"]
        self.best_model_path = self.kth_best_model_path = str(here)
        self.best_model_score = self.kth_value = self.current_score = score
        self.best_k_models = {str(here): score}
