"""A training step of a network with depthwise convolutions on a CPU, in bfloat16 and float32.

python benchmarks/depthwise.py [--batch 8] [--size 180 240] [--rounds 7]

The ways take turns in each round, so that other load slows all of them alike. The comparison is meaningful
only on processors that compute in bfloat16 (`grep -E "avx512_bf16|amx_bf16" /proc/cpuinfo`).
"""

import argparse
import time
from contextlib import nullcontext
from statistics import median
from unittest import mock

import torch
from torch import nn

from cocoseg.networks import encoders
from cocoseg.networks.timm_unet import TimmUNet

WAYS = (  # name, bfloat16, depthwise convolutions in float32
    ("bfloat16", True, False),
    ("bfloat16, depthwise in float32", True, True),
    ("float32", False, False),
)


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple, *, half: bool, exact: bool) -> float:
    """Seconds of one step."""
    image, mask = batch
    leave = nullcontext() if exact else mock.patch.object(encoders, "is_slow", return_value=False)
    start = time.perf_counter()
    with leave, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = nn.functional.cross_entropy(net(image).float(), mask)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7, help="of 3 steps in each way, after one to warm up")
    settings = parser.parse_args()

    torch.manual_seed(0)
    net = TimmUNet(12, settings.encoder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    image = torch.randn(settings.batch, 3, *settings.size).to(memory_format=torch.channels_last)
    batch = image, torch.randint(12, (settings.batch, *settings.size))
    seconds: dict[str, list[float]] = {name: [] for name, *_ in WAYS}
    for round in range(settings.rounds + 1):
        for name, half, exact in WAYS:
            for _ in range(3 if round else 1):
                taken = step(net, optimizer, batch, half=half, exact=exact)
                if round:
                    seconds[name].append(taken)

    height, width = settings.size
    print(
        f"{settings.encoder}, {height}x{width}, batch {settings.batch}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, median of {3 * settings.rounds} steps\n"
    )
    print("| way | s per step | fastest | of bfloat16 |\n|---|---|---|---|")
    base = median(seconds[WAYS[0][0]])
    for name, values in seconds.items():
        print(f"| {name} | {median(values):.3f} | {min(values):.3f} | {median(values) / base:.2f} |")


if __name__ == "__main__":
    main()
