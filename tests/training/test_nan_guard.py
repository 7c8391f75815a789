"""A loss that is NaN ends the training."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from cocoseg.budget.budget import Budget
from cocoseg.errors import TrainingError
from cocoseg.training import nan_guard
from cocoseg.training.checkpoints import LastCheckpoint
from cocoseg.training.nan_guard import StopOnNaN
from tiny import loader, random_batch, tiny_module, tiny_trainer


def test_a_loss_that_is_nan_ends_the_training_and_is_not_saved(tmp_path: Path) -> None:
    batch = random_batch()
    broken = (torch.full_like(batch[0], float("nan")), batch[1])
    last = LastCheckpoint(tmp_path, timedelta(minutes=5), Budget(None))
    trainer = tiny_trainer(tmp_path, max_epochs=1, callbacks=[StopOnNaN(), last])
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1, .* lower optimizer\.lr"):
        trainer.fit(tiny_module(), loader(batch, broken, batch))
    assert torch.load(last.path, weights_only=True)["global_step"] == 1  # the one before


def test_a_loss_that_was_not_looked_at_is_before_it_is_saved(tmp_path: Path) -> None:
    """On a GPU only every tenth is."""

    class Unseen(StopOnNaN):
        def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Any) -> None:
            self._loss = loss.detach()

    batch = random_batch()
    broken = (torch.full_like(batch[0], float("nan")), batch[1])
    last = LastCheckpoint(tmp_path, timedelta(microseconds=1), Budget(None))
    trainer = tiny_trainer(tmp_path, max_epochs=1, callbacks=[Unseen(), last])
    with pytest.raises(TrainingError, match="the loss is nan"):
        trainer.fit(tiny_module(), loader(batch, batch, broken, batch))
    assert torch.load(last.path, weights_only=True)["global_step"] == 2


def test_a_loss_of_another_process_is_before_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first one that saves, and says it for all."""
    stop = StopOnNaN()
    monkeypatch.setattr(nan_guard, "largest", lambda broken: (1,))
    with pytest.raises(TrainingError, match="the loss is NaN or infinite on another rank at step 3"):
        stop.on_save_checkpoint(SimpleNamespace(global_step=3), tiny_module(), {})
    monkeypatch.setattr(nan_guard, "rank", lambda: 1)
    with pytest.raises(SystemExit):
        stop.on_save_checkpoint(SimpleNamespace(global_step=3), tiny_module(), {})
