"""Compiling for training, without a trace of the first pass."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cocoseg.config import AugmentConfig, Config
from cocoseg.errors import TrainingError
from cocoseg.training.compiling import CompileNetwork
from tiny import loader, random_batch, tiny_module, tiny_trainer


def fit(folder: Path, *, compiled: bool = True, start_size: float = 1.0) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Config(augment=AugmentConfig(start_size=start_size))
    data = SimpleNamespace(batch_size=2, train_set=range(10), config=config, progress=lambda: 0.0)
    module = tiny_module()
    trainer = tiny_trainer(folder, max_epochs=1, callbacks=[CompileNetwork(data)] if compiled else [])
    trainer.fit(module, loader(random_batch(), random_batch(seed=1)), loader(random_batch(seed=2)))
    return module


@pytest.fixture
def compiles(monkeypatch) -> list[tuple[int, ...]]:
    """Stands in for torch.compile, which takes a quarter of a minute; shapes of the images of each call."""
    calls: list[tuple[int, ...]] = []

    def compile_(function, dynamic):
        if isinstance(function, nn.Module):  # as the real one, which wraps it
            return nn.Sequential(function)

        def compiled(image):
            calls.append(tuple(image.shape))
            return function(image)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def assert_same_weights(ours: nn.Module, theirs: nn.Module, **tolerance: float) -> None:
    pairs = zip(ours.net.state_dict().items(), theirs.net.state_dict().values(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(one, other, msg=name, **tolerance)


def test_compiled_for_training_only(compiles, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    module = fit(tmp_path)
    assert module.compiled is not None
    assert compiles == [(2, 3, 16, 16)] * 3  # once before the first of two steps; no validation
    assert any("the network is compiled" in record.message for record in caplog.records)


def test_the_first_pass_has_the_size_of_the_first_images(compiles, tmp_path, monkeypatch):
    monkeypatch.setattr("cocoseg.data.augment.MULTIPLE", 8)
    fit(tmp_path, start_size=0.5)
    assert compiles[0] == (2, 3, 8, 8)


def test_the_first_pass_leaves_no_trace(compiles, tmp_path):
    ours, plain = fit(tmp_path / "a"), fit(tmp_path / "b", compiled=False)
    assert_same_weights(ours, plain, atol=0, rtol=0)
    assert set(ours.state_dict()) == set(plain.state_dict())  # checkpoints have the same keys


def test_a_failure_is_one_line(monkeypatch, tmp_path):
    def failing(function, dynamic):
        def compiled(image):
            raise RuntimeError("no compiler\nfound anywhere")

        return compiled

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(
        TrainingError, match=r"^compile: torch\.compile failed \(no compiler\); set compile=false$"
    ):
        fit(tmp_path)


@pytest.mark.slow
def test_the_real_one_learns_the_same(tmp_path):
    assert_same_weights(fit(tmp_path / "a"), fit(tmp_path / "b", compiled=False), atol=1e-4, rtol=1e-3)
