"""Time of a training step by kernel, without data loading: what takes most, and the share of convolutions.

    python benchmarks/kernels.py --batch 64 --size 224 --base 64 --compile

The step is that of `step.py`. The tables come from torch's profiler: kernels of the GPU, or operators where
there is none. Convolutions count with the changes of layout that cuDNN makes for them.
"""

import argparse
from typing import Any

import torch
from step import CLASSES, Stepper, seconds, unet
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cocoseg.networks.device import resolve_precision

WARM_UP = 3  # steps
NAME = 90  # characters of a kernel's name
# The operators that call a library's convolution; those around them would count the same kernels again.
CONVOLUTIONS = (
    "aten::cudnn_convolution",
    "aten::cudnn_convolution_transpose",
    "aten::_slow_conv2d_forward",
    "aten::_conv_depthwise2d",
    "aten::mkldnn_convolution",
    "aten::convolution_backward",
)


def record(step: Stepper, image: torch.Tensor, mask: torch.Tensor, steps: int) -> list[Any]:
    """Averages of a profile, one for each kernel and operator."""
    activities = [ProfilerActivity.CPU]
    if image.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        seconds(step, image, mask, steps)
    return list(profiler.key_averages())


def is_kernel(event: Any, *, on_gpu: bool) -> bool:
    """Tell a kernel from a named range of kernels, which would count them twice."""
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return event.device_type == kind and not getattr(event, "is_user_annotation", False)


def show(title: str, events: list[Any], steps: int, entries: int, *, on_gpu: bool) -> None:
    whole = "device_time_total" if on_gpu else "cpu_time_total"
    own = f"self_{whole}"
    kernels = sorted(
        (event for event in events if is_kernel(event, on_gpu=on_gpu)), key=lambda event: -getattr(event, own)
    )
    total = sum(getattr(event, own) for event in kernels)
    convolutions = sum(
        getattr(event, whole)
        for event in events
        if event.key in CONVOLUTIONS and event.device_type == DeviceType.CPU
    )
    print(f"\n{title}; kernels {total / steps / 1e3:.2f} ms, {convolutions / total:.0%} of it convolutions")
    print("\n| kernel | calls a step | ms a step | share |\n|---|---|---|---|")
    for event in kernels[:entries]:
        name, own_time = event.key.replace("|", "/")[:NAME], getattr(event, own)
        print(f"| {name} | {event.count / steps:g} | {own_time / steps / 1e3:.3f} | {own_time / total:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--batch", type=int, default=64 if cuda else 4)
    parser.add_argument("--size", type=int, default=224 if cuda else 128)
    parser.add_argument("--base", type=int, default=64 if cuda else 16)
    parser.add_argument("--steps", type=int, default=10 if cuda else 2)
    parser.add_argument("--entries", type=int, default=15, help="per table")
    parser.add_argument("--compile", action="store_true", help="a table with torch.compile, too")
    options = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    settings = resolve_precision({})
    torch.backends.cudnn.benchmark = settings["benchmark"]
    shape = options.batch, options.size, options.size
    image = torch.randn(shape[0], 3, *shape[1:], device=device).contiguous(memory_format=torch.channels_last)
    mask = torch.randint(0, CLASSES, shape, device=device)
    for compiled in (False, True) if options.compile else (False,):
        net = unet(options.base)
        step = Stepper(net, device, precision=settings["precision"], fast=True, compiled=compiled)
        seconds(step, image, mask, WARM_UP)
        bare = seconds(step, image, mask, options.steps)
        events = record(step, image, mask, options.steps)
        title = f"{'compiled' if compiled else 'eager'}, {bare * 1e3:.2f} ms a step without the profiler"
        show(title, events, options.steps, options.entries, on_gpu=cuda)


if __name__ == "__main__":
    main()
