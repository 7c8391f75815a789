from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError, WriteError
from cocoseg.files import write_bytes
from cocoseg.training import checkpoints
from cocoseg.training.checkpoints import BestCheckpoint, LastCheckpoint, Retries, WholeCheckpointIO
from cocoseg.training.event_file import TensorBoardLogger
from tiny import loader, random_batch, tiny_module, tiny_trainer
from witness import FullDisk, limit_files


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


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_RETRY", "RETRY", "AT_END"):
        monkeypatch.setattr(checkpoints, name, 0.0)


def fit_on(folder: Path, full: FullDisk, every: float) -> L.Trainer:
    """A training of 12 steps with a TensorBoard file, checkpoints and a validation after every second one."""
    budget, exports = Budget(None), []

    def export(path: Path) -> None:
        exports.append(torch.load(path, weights_only=True)["global_step"])
        write_bytes(folder / "model.pth", bytes(5000))

    last = LastCheckpoint(folder, timedelta(seconds=every), budget)
    best = BestCheckpoint(folder, export=export)
    best.check_monitor_top_k = lambda *_: True  # every validation counts as better than the one before
    trainer = tiny_trainer(
        folder,
        max_epochs=6,
        callbacks=[full, last, best],
        enable_checkpointing=True,
        plugins=[WholeCheckpointIO(budget)],
        logger=TensorBoardLogger(folder, name="", version="", flush_secs=0),
        log_every_n_steps=1,
    )
    try:
        trainer.fit(tiny_module(), loader(random_batch(), random_batch(seed=1)), loader(random_batch(seed=2)))
    finally:
        limit_files(-1)  # before pytest writes to its own output, which may be a file
    trainer.last, trainer.exports = last, exports
    return trainer


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    tmp_path: Path, short_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fit_on(tmp_path, FullDisk(3, 7), every=60)
    assert trainer.global_step == 12
    assert not trainer.last.failure
    assert trainer.exports == [2, 6, 8, 10, 12]  # that of step 6 waited in memory
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 12
    said = [message for message in caplog.messages if "can't be written" in message]
    assert any("last.ckpt: can't be written (File too large); the run goes on" in message for message in said)
    assert any("best.ckpt: can't be written" in message for message in said)
    assert sum("TensorBoard's file can't be written now" in message for message in said) == 1
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss_step")
    assert [event.step for event in events] == list(range(12))  # none is lost
    assert not list(tmp_path.glob(".part-*"))


def test_training_ends_in_order_where_nothing_can_be_saved_for_long(
    tmp_path: Path, short_waits: None
) -> None:
    trainer = fit_on(tmp_path, FullDisk(3), every=0.001)
    assert 3 < trainer.global_step < 12
    assert trainer.last.failure.startswith("no checkpoint could be written for ")
    assert trainer.last.step <= 3
    assert trainer.exports == [2]
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2


def test_times_of_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(checkpoints, "now", lambda: clock.now)
    retries = Retries()
    tries = []
    while clock.now < 400:
        retries.note(WriteError("full"))
        tries.append((clock.now - 100, retries.failing()))
        assert not retries.are_due()
        clock.now = retries.at
    assert tries == [(seconds, seconds) for seconds in (0, 10, 70, 130, 190, 250)]
    retries.note(None)
    assert (retries.are_due(), retries.failing(), retries.reason) == (True, 0, "")


def saved(path: Path, miou: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = tiny_module().spec.to_dict()
    torch.save(
        {"scores": {"miou": miou}, "spec": spec, "state_dict": {}, "pytorch-lightning_version": ""}, path
    )
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
    trainer = tiny_trainer(tmp_path)
    assert not best.check_monitor_top_k(trainer, torch.tensor(expected - 0.01))
    assert best.check_monitor_top_k(trainer, torch.tensor(expected + 0.01))


def failing(**kept: bytes) -> SimpleNamespace:
    """A trainer that must save nothing, with files that wait for space on the disk."""
    disk = WholeCheckpointIO(Budget(None))
    disk.kept = {Path(path): content for path, content in kept.items()}
    return SimpleNamespace(
        global_step=7,
        strategy=SimpleNamespace(checkpoint_io=disk),
        save_checkpoint=lambda path: pytest.fail("was written"),
    )


def test_what_waits_for_space_is_written_whatever_ends_the_training(tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path, timedelta(minutes=5), Budget(None))
    last.on_exception(failing(**{str(tmp_path / "best.ckpt"): b"best"}), None, CocosegError("NaN"))
    assert (tmp_path / "best.ckpt").read_bytes() == b"best"


def test_an_error_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path, timedelta(minutes=5), Budget(None))
    last.on_exception(failing(), None, RuntimeError("the optimizer's state does not fit"))
    trainer, last.training = failing(), True
    trainer.global_step = 0
    last.on_exception(trainer, None, RuntimeError("fails in the first step"))
