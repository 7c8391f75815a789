"""The device: its fastest precision and kernels; memory that runs out, and loaders that end."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data._utils import signal_handling

from cocoseg.errors import TrainingError

SMALLER = (
    "data.batch_size (with trainer.accumulate_grad_batches to make up for it), data.image_size or "
    "model.base_channels"
)
# Words in RuntimeErrors of CUDA's libraries, MPS and the CPU's allocator, which have no class of their own.
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)

# Signal that ended a loader's process -> what to do about it.
ADVICE = {
    "Killed": "if memory ran out, lower {smaller}, or data.num_workers",
    "Bus error": (
        "shared memory ran out, it seems: raise its limit (docker run --shm-size=8g), or set "
        "data.num_workers=0"
    ),
    "Terminated": "something outside of this program ended it",
}
OTHERWISE = "data.num_workers=0 loads in the main process, which shows more"


def uses_cuda(settings: dict[str, Any]) -> bool:
    """Tell whether a trainer with these settings trains on a CUDA device."""
    return settings.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def resolve_precision(settings: dict[str, Any]) -> dict[str, Any]:
    """Resolve the trainer's settings that are left to the device.

    `precision: auto` is bfloat16 on a GPU or CPU that has it (its range needs no scaling of the loss), else
    float32; `benchmark: null` lets cuDNN try its algorithms, for all training batches have one size.
    """
    settings = dict(settings)
    cuda = uses_cuda(settings)
    if settings.get("precision", "auto") == "auto":
        settings["precision"] = "bf16-mixed" if _has_bfloat16(settings) else "32-true"
    if settings.get("benchmark") is None:
        settings["benchmark"] = cuda and not settings.get("deterministic")
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in float32
    return settings


def _has_bfloat16(settings: dict[str, Any]) -> bool:
    """Tell whether the device itself computes in bfloat16, which is slower than float32 when emulated."""
    if uses_cuda(settings):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.get("accelerator", "auto") not in ("auto", "cpu") or torch.backends.mps.is_available():
        return False
    # Not in the oldest torch that is supported.
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@contextmanager
def without_autotuning() -> Iterator[None]:
    """Let cuDNN choose algorithms by its rules: trying them takes seconds for every new size of input."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def preserve_state(net: nn.Module) -> Iterator[None]:
    """Put a network in training mode for trial passes that leave no trace.

    Afterwards buffers (statistics of BatchNorm), mode and random numbers are as before, gradients None.
    """
    buffers = [buffer.clone() for buffer in net.buffers()]
    training = net.training
    device = next(net.parameters()).device
    net.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(net.buffers(), buffers, strict=True):
                buffer.copy_(before)
        net.zero_grad(set_to_none=True)
        net.train(training)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory of the device or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in OUT_OF_MEMORY)


@contextmanager
def explain_out_of_memory(smaller: str = SMALLER) -> Iterator[None]:
    """Report memory that runs out, or a loader's process that ended, as a TrainingError in one line.

    Args:
        smaller: keys to lower where memory runs out.
    """
    _watch_loaders()
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingError(f"out of memory: lower {smaller}") from error
        if sentence := explain_lost_loader(error, smaller):
            raise TrainingError(sentence) from error
        raise


def _watch_loaders() -> None:
    """Have torch notice what ends a loader's process.

    torch 2.11 to 2.15 sets its handler of SIGCHLD once per process, with the first loader. After a training
    Lightning 2.6 puts all handlers back: a later training would not know what ended its loaders.
    """
    if sys.platform != "win32" and not callable(signal.getsignal(signal.SIGCHLD)):
        signal_handling._SIGCHLD_handler_set = False
        signal_handling._set_SIGCHLD_handler()


def explain_lost_loader(error: BaseException, smaller: str = SMALLER) -> str | None:
    """Say what ended a worker process of a DataLoader; None where the error is another one.

    torch names the signal in the error itself or in its cause.
    """
    said = f"{error} {error.__cause__ or ''}"
    if "DataLoader worker" not in said:
        return None
    end = re.search(r"(by signal: ([\w ]+)|with exit code \d+)", said)
    how, name = (end[1], end[2]) if end else ("by itself", None)
    advice = ADVICE.get(str(name), OTHERWISE).format(smaller=smaller)
    return f"a process that loads images ended {how}; {advice}"
