"""Settings that are left to the device, and memory that runs out."""

import copy
import os
import re
import signal
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cocoseg.errors import TrainingError
from cocoseg.networks.device import (
    explain_out_of_memory,
    is_out_of_memory,
    preserve_state,
    resolve_precision,
    uses_cuda,
)
from cocoseg.networks.model_file import save_model
from tiny import SPEC, tiny_unet


@pytest.fixture
def gpu(monkeypatch):
    """A machine that claims to have a GPU, with bfloat16 or without."""
    before = torch.get_float32_matmul_precision()

    def claim(*, bfloat16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)

    yield claim
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def processor(monkeypatch):
    """Capabilities of the processor; none until a test adds some."""
    has = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return has


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_on_a_cpu(no_gpu):
    assert resolve_precision({"precision": "auto", "benchmark": None, "devices": 1}) == {
        "precision": "32-true",
        "benchmark": False,
        "devices": 1,
    }
    assert not uses_cuda({"accelerator": "gpu"})


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_on_a_cpu_with_bfloat16(no_gpu, processor, name, accelerator):
    processor[name] = True
    assert resolve_precision({"accelerator": accelerator})["precision"] == "bf16-mixed"
    assert resolve_precision({"accelerator": "mps"})["precision"] == "32-true"


def test_a_torch_that_does_not_tell(no_gpu, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve_precision({})["precision"] == "32-true"


def test_on_a_gpu(gpu):
    gpu()
    assert resolve_precision({"precision": "auto"}) == {"precision": "bf16-mixed", "benchmark": True}
    assert torch.get_float32_matmul_precision() == "high"
    assert resolve_precision({"deterministic": True}) == {
        "precision": "bf16-mixed",
        "benchmark": False,
        "deterministic": True,
    }


def test_on_a_gpu_without_bfloat16(gpu, processor):
    processor["avx512_bf16"] = True
    gpu(bfloat16=False)
    assert resolve_precision({"precision": "auto"})["precision"] == "32-true"


def test_on_the_cpu_of_a_machine_with_a_gpu(gpu):
    gpu()
    before = torch.get_float32_matmul_precision()
    assert resolve_precision({"accelerator": "cpu"})["precision"] == "32-true"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("precision", ["16-mixed", "32-true", "64-true", 32])
def test_what_the_user_says_stays(gpu, precision):
    gpu()
    settings = {"precision": precision, "benchmark": False}
    assert resolve_precision(settings) == settings


def test_model_files_hold_plain_layout(tmp_path):
    net = tiny_unet().to(memory_format=torch.channels_last)
    assert not net.stem[0].weight.is_contiguous()
    save_model(tmp_path / "model.pth", net.state_dict(), SPEC, None)
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["state_dict"]
    assert all(weight.is_contiguous() for weight in weights.values())


def test_state_is_preserved():
    net = tiny_unet().eval()
    before = copy.deepcopy(net.state_dict())
    random = torch.get_rng_state()
    with preserve_state(net):
        assert net.training
        net(torch.rand(2, 3, 16, 16)).mean().backward()
        assert not torch.equal(net.state_dict()["stem.1.running_mean"], before["stem.1.running_mean"])
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_cudas_libraries_have_errors_of_their_own(said):
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()],
)
def test_memory_that_runs_out_is_one_line(error):
    with (
        pytest.raises(TrainingError, match=r"^out of memory: lower data\.image_size$"),
        explain_out_of_memory("data.image_size"),
    ):
        raise error


def test_memory_that_runs_out_on_a_cpu_is_one_line():
    with pytest.raises(TrainingError, match=r"^out of memory: lower"), explain_out_of_memory():
        torch.empty(2**50)


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"), explain_out_of_memory():
        raise RuntimeError("shapes do not fit")


class Ends(Dataset[int]):
    """Images whose loader is ended by a signal, or by itself."""

    def __init__(self, number: int | None):
        self.number = number

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if self.number is not None:
            os.kill(os.getpid(), self.number)
        os._exit(3)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGKILL, "by signal: Killed; if memory ran out, lower data.batch_size, or data.num_workers"),
        (signal.SIGBUS, "by signal: Bus error; shared memory ran out, it seems: raise its limit "),
        (signal.SIGTERM, "by signal: Terminated; something outside of this program ended it"),
        (signal.SIGSEGV, "by signal: Segmentation fault; data.num_workers=0 loads in the main process"),
        (None, "with exit code 3; data.num_workers=0 loads in the main process"),
    ],
    ids=str,
)
def test_what_ended_a_loader_is_named(number: int | None, expected: str) -> None:
    with (
        pytest.raises(
            TrainingError, match=re.escape(f"a process that loads images ended {expected}")
        ) as raised,
        explain_out_of_memory("data.batch_size"),
    ):
        list(DataLoader(Ends(number), num_workers=1))
    assert "out of memory" not in str(raised.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_what_ended_a_loader_is_named_in_a_later_training_too() -> None:
    with explain_out_of_memory():
        list(DataLoader(range(1), num_workers=1))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as Lightning leaves it behind
    with pytest.raises(TrainingError, match="by signal: Killed"), explain_out_of_memory():
        list(DataLoader(Ends(signal.SIGKILL), num_workers=1))


def test_errors_of_other_kinds_pass() -> None:
    with pytest.raises(RuntimeError, match="killed by signal") as raised, explain_out_of_memory():
        raise RuntimeError("ffmpeg was killed by signal: Killed")
    assert not isinstance(raised.value, TrainingError)
