import errno
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from cocoseg.budget import Budget
from cocoseg.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from cocoseg.errors import CocosegError
from tiny import loader, random_batch, tiny_module, tiny_trainer


def fit(folder: Path, budget: Budget, *, epochs: int, exports: list[int] | None = None) -> LastCheckpoint:
    last = LastCheckpoint(folder, timedelta(minutes=5))
    best = BestCheckpoint(folder, export=lambda: (exports if exports is not None else []).append(1))
    trainer = tiny_trainer(
        folder,
        max_epochs=epochs,
        callbacks=[last, best],
        enable_checkpointing=True,
        plugins=[WholeCheckpointIO(budget)],
    )
    trainer.fit(tiny_module(), loader(random_batch(), random_batch(seed=1)), loader(random_batch(seed=2)))
    return last


def test_last_is_written_at_the_end_and_best_after_every_better_validation(tmp_path: Path) -> None:
    budget, exports = Budget(None), []
    last = fit(tmp_path, budget, epochs=3, exports=exports)
    assert last.step == 6
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] in (2, 4, 6)
    assert 1 <= len(exports) <= 3
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_saving_is_timed(tmp_path: Path) -> None:
    budget = Budget(None)
    fit(tmp_path, budget, epochs=1)
    assert 0 < budget.expected.checkpoint <= budget.spent.saving


def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, Budget(None), epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = Path.replace

    def fail(path: Path, target: Path) -> None:
        if target.name.endswith(".ckpt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CocosegError, match=r"\.ckpt: can't be written \(No space left on device\)"):
        fit(tmp_path, Budget(None), epochs=2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
