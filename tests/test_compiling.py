"""Compiling for training: when, whether it is kept, and that it leaves no trace."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cocoseg import compiling
from cocoseg.budget import Budget
from cocoseg.compiling import WORTH_FROM, CompileNetwork
from cocoseg.errors import TrainingError
from tiny import loader, random_batch, tiny_module, tiny_trainer

DATA = SimpleNamespace(batch_size=2, train_set=range(10))


def fit(folder: Path, callback: CompileNetwork, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    module = tiny_module()
    trainer = tiny_trainer(folder, max_epochs=1, callbacks=[callback], **options)
    trainer.fit(module, loader(random_batch(), random_batch(seed=1)), loader(random_batch(seed=2)))
    return module


@pytest.fixture
def compiles(monkeypatch) -> list[int]:
    """Stands in for torch.compile, which takes a quarter of a minute; how many images each call saw."""
    calls: list[int] = []

    def compile_(function, dynamic):
        if isinstance(function, nn.Module):  # as the real one, which wraps it
            return nn.Sequential(function)

        def compiled(image):
            calls.append(len(image))
            return function(image)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.fixture
def on_gpu(monkeypatch):
    """As if the module lay on a GPU, where the network takes these seconds, compiled and not."""

    def claim(plain: float, compiled: float) -> None:
        is_worthwhile = CompileNetwork._is_worthwhile
        monkeypatch.setattr(
            CompileNetwork, "_is_worthwhile", lambda self, device: is_worthwhile(self, torch.device("cuda"))
        )
        monkeypatch.setattr(
            compiling,
            "_seconds_per_pass",
            lambda function, net, image: plain if function is net else compiled,
        )

    return claim


def test_compiled_for_training_only(compiles, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    module = fit(tmp_path, CompileNetwork(True, DATA, Budget(None)))
    assert module.compiled is not None
    assert compiles == [2] * (1 + compiling.TIMED) + [2, 2]  # tried, then two steps; no validation
    assert any("the network is compiled" in record.message for record in caplog.records)


def test_trying_leaves_no_trace(compiles, tmp_path):
    compiled = fit(tmp_path / "a", CompileNetwork(True, DATA, Budget(None)))
    plain = fit(tmp_path / "b", CompileNetwork("auto", DATA, Budget(None)))
    assert plain.compiled is None
    for (name, ours), theirs in zip(
        compiled.net.state_dict().items(), plain.net.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_checkpoints_have_the_same_keys(compiles, tmp_path):
    module = fit(tmp_path, CompileNetwork(True, DATA, Budget(None)))
    assert set(module.state_dict()) == set(tiny_module().state_dict())


@pytest.mark.parametrize("limit", [None, WORTH_FROM - 1, 3600.0])
def test_auto_does_not_on_a_cpu(compiles, tmp_path, limit):
    assert fit(tmp_path, CompileNetwork("auto", DATA, Budget(limit))).compiled is None
    assert compiles == []


@pytest.mark.parametrize(
    ("limit", "compiled", "kept"),
    [
        (WORTH_FROM + 60, 0.8, True),
        (WORTH_FROM + 60, 1.0, False),
        (WORTH_FROM + 60, 1.2, False),
        (WORTH_FROM - 60, 0.8, False),
        (None, 0.8, False),  # nothing may depend on the clock
    ],
)
def test_auto_on_a_gpu(compiles, on_gpu, tmp_path, limit, compiled, kept):
    on_gpu(1.0, compiled)
    module = fit(tmp_path, CompileNetwork("auto", DATA, Budget(limit)))
    assert (module.compiled is not None) == kept


def failing(function, dynamic):
    def compiled(image):
        raise RuntimeError("no compiler\nfound anywhere")

    return compiled


def test_a_failure_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(TrainingError, match=r"^compile: torch\.compile failed \(no compiler\); set"):
        fit(tmp_path, CompileNetwork(True, DATA, Budget(None)))


def test_one_of_several_processes_that_fails_leaves_none_waiting(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compiling, "agreed", lambda *values: asked.append(values) or values)
    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(CompileNetwork, "_is_worthwhile", lambda self, device: True)
    fit(tmp_path, CompileNetwork("auto", DATA, Budget(3600)))
    assert asked == [(True,), (False,)]  # as many exchanges as where it works


def test_auto_goes_on_without(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(CompileNetwork, "_is_worthwhile", lambda self, device: True)
    assert fit(tmp_path, CompileNetwork("auto", DATA, Budget(3600))).compiled is None
    assert "compile: torch.compile failed (no compiler); training goes on without" in caplog.messages


@pytest.mark.slow
def test_the_real_one_learns_the_same(tmp_path):
    compiled = fit(tmp_path / "a", CompileNetwork(True, DATA, Budget(None)))
    plain = fit(tmp_path / "b", CompileNetwork("auto", DATA, Budget(None)))
    for (name, ours), theirs in zip(
        compiled.net.state_dict().items(), plain.net.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3, msg=name)
