import logging
import time
from pathlib import Path

import pytest
import torch

from cocoseg import formats as module
from cocoseg.budget import END, Budget
from cocoseg.errors import CocosegError
from cocoseg.export import save_model
from cocoseg.formats import ExtraFormats
from tiny import SPEC, tiny_module


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "segmentation_model.pth"
    save_model(path, tiny_module().net.state_dict(), SPEC, None)
    return path


def written(model_file: Path) -> set[str]:
    return {path.name for path in model_file.parent.iterdir()} - {model_file.name}


def test_a_trial_tells_the_budget_what_to_reserve_and_leaves_nothing(
    tmp_path: Path, model_file: Path
) -> None:
    budget, model = Budget(limit=600), tiny_module()
    before = budget.reserve()
    weights = {key: value.clone() for key, value in model.net.state_dict().items()}
    numbers = torch.random.get_rng_state()

    ExtraFormats(["pth", "torch_export"], model, budget).try_out()

    assert list(budget.expected.formats) == ["torch_export"]
    assert budget.reserve() > before + budget.expected.formats["torch_export"] > before
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert all(torch.equal(value, weights[key]) for key, value in model.net.state_dict().items())
    assert model.net.training
    assert written(model_file) == set()


def test_they_are_written_at_the_end(model_file: Path) -> None:
    budget = Budget(limit=600)
    extra = ExtraFormats(["torch_export"], tiny_module(), budget)
    extra.try_out()

    (done,) = extra.write(model_file)

    assert done.path == model_file.with_suffix(".pt2")
    assert written(model_file) == {"segmentation_model.pt2"}
    assert budget.spent.saving > 0


def test_pth_alone_costs_nothing(model_file: Path) -> None:
    budget = Budget(limit=600)
    extra = ExtraFormats(["pth"], tiny_module(), budget)
    extra.try_out()
    assert budget.expected.formats == {}
    assert extra.write(model_file) == []


def failing(name: str, *args: object, **options: object) -> None:
    raise CocosegError(f"the network can't be written as {name} (for a test)")


def test_a_network_that_cant_be_written_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "export_format", failing)
    extra = ExtraFormats(["onnx"], tiny_module(), Budget(limit=600))
    with pytest.raises(CocosegError, match=r"^export: the network can't be written as onnx .*leave onnx out"):
        extra.try_out()


def test_what_fails_at_the_end_is_a_warning(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    budget = Budget(limit=600)
    budget.expected.formats = {"onnx": 1.0}
    monkeypatch.setattr(module, "export_format", failing)
    with caplog.at_level(logging.WARNING):
        assert ExtraFormats(["onnx"], tiny_module(), budget).write(model_file) == []
    assert (
        "onnx not written: the network can't be written as onnx (for a test); later: python -m" in caplog.text
    )
    assert f"checkpoint={model_file} formats=[onnx]" in caplog.text
    assert model_file.is_file()


@pytest.mark.parametrize(
    ("left", "known", "signal", "reason"),
    [
        (END + 5, {"onnx": 6.0}, False, "there was no time left"),
        (600, {}, False, "there was no time left"),  # no trial has told how long it takes
        (600, {"onnx": 6.0}, True, "a signal ended the run"),
    ],
)
def test_nothing_is_begun_that_the_time_does_not_allow(
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    left: float,
    known: dict[str, float],
    signal: bool,
    reason: str,
) -> None:
    budget = Budget(limit=left)
    budget.expected.formats = known
    monkeypatch.setattr(module, "export_format", lambda *args: pytest.fail("it was begun"))
    extra = ExtraFormats(["onnx"], tiny_module(), budget)
    extra.leave_out = signal
    with caplog.at_level(logging.WARNING):
        assert extra.write(model_file) == []
    assert reason in caplog.text


def test_a_run_that_goes_on_knows_how_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Budget(limit=600, used_before=100)
    first.expected.formats = {"onnx": 6.0, "torch_export": 3.0}
    second = Budget(limit=600)
    second.resume(first.to_dict())
    monkeypatch.setattr(module, "export_format", lambda *args: pytest.fail("it was tried"))

    ExtraFormats(["onnx"], tiny_module(), second).try_out()

    assert second.expected.formats == {"onnx": 6.0}


def test_they_take_a_fifth_of_the_time_at_most(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run of seconds goes on without them."""
    budget = Budget(limit=2.0)
    monkeypatch.setattr(module, "export_format", lambda *args: time.sleep(0.35))
    extra = ExtraFormats(["onnx"], tiny_module(), budget)
    with caplog.at_level(logging.WARNING):
        extra.try_out()
        assert budget.for_formats() == 0
        assert extra.write(model_file) == []
    assert "too much of 2.0 s; nothing is reserved for it" in caplog.text


def test_no_trial_near_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(limit=600, used_before=550)
    monkeypatch.setattr(module, "export_format", lambda *args: pytest.fail("it was tried"))
    ExtraFormats(["onnx"], tiny_module(), budget).try_out()
    assert budget.expected.formats == {}
