import errno
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError
from cocoseg.training.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from tiny import loader, random_batch, tiny_module, tiny_trainer


def fit(folder: Path, budget: Budget, *, epochs: int, exports: list[Path] | None = None) -> LastCheckpoint:
    last = LastCheckpoint(folder, timedelta(minutes=5), budget)
    best = BestCheckpoint(folder, export=(exports if exports is not None else []).append)
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
    assert set(exports) == {tmp_path / "best.ckpt"}
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_saving_is_timed(tmp_path: Path) -> None:
    budget = Budget(None)
    fit(tmp_path, budget, epochs=1)
    assert 0 < budget.expected["checkpoint"] <= budget.spent["saving"]


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


def saved(path: Path, miou: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"scores": {"miou": miou}}, path)
    return path


@pytest.mark.parametrize(
    ("here", "earlier", "expected"),
    [
        (0.6, 0.3, 0.6),  # a later validation than that of the checkpoint
        (None, 0.3, 0.3),
        (None, None, None),
    ],
)
def test_the_best_of_an_earlier_run_is_kept(
    tmp_path: Path, here: float | None, earlier: float | None, expected: float | None
) -> None:
    places = {"here": here, "earlier": earlier}
    files = {
        name: saved(tmp_path / name / "best.ckpt", miou) for name, miou in places.items() if miou is not None
    }
    best = BestCheckpoint(tmp_path / "here", export=lambda path: None, earlier=files.get("earlier"))
    best.load_state_dict({})
    if expected is None:
        assert not best.best_model_path
        return
    assert best.best_model_path == str(tmp_path / "here" / "best.ckpt")
    assert float(best.best_model_score) == pytest.approx(expected)
    assert torch.load(best.best_model_path, weights_only=True)["scores"]["miou"] == expected


def test_an_error_while_a_checkpoint_is_restored_leaves_it_alone(tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path, timedelta(minutes=5), Budget(None))
    trainer = SimpleNamespace(global_step=7, save_checkpoint=lambda path: pytest.fail("was written"))
    last.on_exception(trainer, None, RuntimeError("the optimizer's state does not fit"))
