"""What the device at hand does fastest: precision, kernels, memory layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def uses_cuda(settings: dict[str, Any]) -> bool:
    """Whether a trainer with these settings trains on a CUDA device."""
    return settings.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def settled(settings: dict[str, Any]) -> dict[str, Any]:
    """The trainer's settings with what was left to the device decided.

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
    """Not where it is emulated, which makes it slower than float32."""
    if uses_cuda(settings):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.get("accelerator", "auto") not in ("auto", "cpu") or torch.backends.mps.is_available():
        return False
    has = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch that is supported
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def in_channels_last(net: nn.Module) -> nn.Module:
    """The same network, its weights laid out as convolutions are fastest."""
    return net.to(memory_format=torch.channels_last)


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Trial passes in training mode that leave no trace: not in the network's statistics and gradients, nor
    in random numbers."""
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
