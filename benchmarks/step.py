"""Speed of a training step without data loading: cocoseg, the plain loop, and a peer's UNet.

    python benchmarks/step.py                            # sizes that suit the device
    python benchmarks/step.py --batches 16 64 --size 224 --base 64 --compile

A step is forward, backward and optimizer. The plain loop is the same network in float32, contiguous, with
torch's default Adam. The peer is `segmentation_models_pytorch.Unet` on a ResNet-18 with a decoder of the same
widths, trained in the same way, so that only the networks differ; it halves its input before its first block
and so computes less. `rate` is the device's own: the fastest product of two large matrices in the same
precision, measured in the same run. FLOP are those of forward and backward, by torch's own counter.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cocoseg.networks.device import resolve_precision
from cocoseg.networks.unet import UNet
from cocoseg.training.losses import CrossEntropyLoss
from cocoseg.training.optimizer import with_fused

CLASSES = 81


class Stepper:
    """One network and its optimizer; a call makes a step and returns its loss."""

    def __init__(self, net: nn.Module, device: torch.device, *, precision: str, fast: bool, compiled: bool):
        self.net = (net.to(memory_format=torch.channels_last) if fast else net).to(device)
        node = {"_target_": "torch.optim.Adam", "lr": 1e-3}
        fused = fast and "fused" in with_fused(node, {})
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=fused or None)
        self.loss = CrossEntropyLoss() if fast else nn.CrossEntropyLoss(ignore_index=255)
        self.forward: Callable = torch.compile(self.net, dynamic=False) if compiled else self.net
        bfloat16 = torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else None
        self.context = bfloat16 or nullcontext()

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self.context:
            loss = self.loss(self.forward(image), mask)
        loss.backward()
        self.optimizer.step()
        return loss


def peer(base: int) -> nn.Module | None:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        return None
    widths = [16 * base, 8 * base, 4 * base, 2 * base, base]
    widths = [max(8, width // 2) for width in widths]  # ours at the same height and width
    return smp.Unet("resnet18", encoder_weights=None, decoder_channels=widths, classes=CLASSES)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some products of square matrices."""
    rates = []
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(5):
            wait(device)
            begin = time.perf_counter()
            a @ b
            wait(device)
            rates.append(2 * size**3 / (time.perf_counter() - begin))
    return max(rates)


def flop(net: nn.Module, image: torch.Tensor) -> int:
    """FLOP of one image, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        net(image[:2]).float().mean().backward()
    return counter.get_total_flops() // 2


def seconds(step: Stepper, image: torch.Tensor, mask: torch.Tensor, steps: int) -> float:
    wait(image.device)
    begin = time.perf_counter()
    for _ in range(steps):
        step(image, mask)
    wait(image.device)
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128] if cuda else [4, 8, 16])
    parser.add_argument("--size", type=int, default=224 if cuda else 128)
    parser.add_argument("--base", type=int, default=64 if cuda else 16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10 if cuda else 1, help="per round")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile, too")
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    settings = resolve_precision({"precision": options.precision})
    precision, torch.backends.cudnn.benchmark = settings["precision"], settings["benchmark"]
    rate = matrix_rate(device, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    print(f"{CLASSES} classes, {options.size}x{options.size}, {options.base} channels, {precision}; ", end="")
    print(f"matrix rate {rate / 1e12:.3g} TFLOP/s\n")
    print("| batch | what | images/s | times plain | TFLOP/s | share of the rate |")
    print("|---|---|---|---|---|---|")

    def ours(*, compiled: bool) -> Stepper:
        return Stepper(unet(options.base), device, precision=precision, fast=True, compiled=compiled)

    for batch in options.batches:
        plain = Stepper(unet(options.base), device, precision="32-true", fast=False, compiled=False)
        ways = {"plain loop": plain, "ours": ours(compiled=False)}
        if options.compile:
            ways["ours, compiled"] = ours(compiled=True)
        if (net := peer(options.base)) is not None:
            ways["smp.Unet, resnet18"] = Stepper(net, device, precision=precision, fast=True, compiled=False)
        image = torch.randn(batch, 3, options.size, options.size, device=device)
        mask = torch.randint(0, CLASSES, (batch, options.size, options.size), device=device)
        failed = ""
        work = {name: flop(step.net, image) for name, step in ways.items()}
        for name, step in list(ways.items()):
            try:
                seconds(step, image, mask, 2)
            except Exception as error:  # the compiler raises many kinds
                if "compiled" not in name:
                    raise
                ways.pop(name)
                failed = f"torch.compile failed: {str(error)[:500]}"
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, step in ways.items():
                times[name].append(seconds(step, image, mask, options.steps))
        base = statistics.median(times["plain loop"])
        for name, values in times.items():
            median = statistics.median(values)
            done = work[name] * batch / median
            print(
                f"| {batch} | {name} | {batch / median:.4g} | {base / median:.2f} | {done / 1e12:.3g} "
                f"| {done / rate:.0%} |",
                flush=True,
            )
        del ways, plain, step
        gc.collect()
        if failed:
            print(f"\n{failed}", file=sys.stderr)
            sys.exit(1)


def unet(base: int) -> UNet:
    torch.manual_seed(0)
    return UNet(CLASSES, base_channels=base)


if __name__ == "__main__":
    main()
