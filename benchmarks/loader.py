"""Loaders and augmentation: images per second until batches are on the device.

    python benchmarks/loader.py --images train2017 --annotations instances_train2017.json

Three loaders run with 0, 1 and 2 workers, with files in the system's cache: a `Dataset` of Pillow images with
the usual torchvision transforms, torchvision v2 transforms on decoded tensors, and cocoseg's after the first
epoch. `per core` counts the processor time of all processes. cocoseg's loader yields bytes; the last row of
each block adds the conversion to floating point, which happens on the device, here on the CPU.
"""

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from cocoseg.config import AugmentConfig, Config, DataConfig, SubsetConfig
from cocoseg.data.augment import Augment
from cocoseg.data.dataset import SegmentationDataset, Split, as_is
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import MEAN, STD
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import prepared_sets

SIZE, BATCH = (224, 224), 16
DEFAULT = {"flip": 0.5, "scale": [0.5, 2.0], "rotate": 5.0}
COLORS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05}


class Plain(Dataset):
    """Data set of the usual tutorials, done correctly: Pillow for everything."""

    def __init__(self, source: SegmentationDataset, lookup: np.ndarray):
        self.files = [(source.image_dir / image, source.folder / mask) for image, mask in source.pairs]
        self.lookup = lookup
        self.transform = v2.Compose(
            [
                v2.Resize(SIZE, interpolation=v2.InterpolationMode.BILINEAR),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image, mask = (PIL.Image.open(file) for file in self.files[number])
        small = mask.resize(SIZE[::-1], PIL.Image.Resampling.NEAREST)
        return self.transform(image.convert("RGB")), torch.from_numpy(self.lookup[np.asarray(small)])


class Tensors(Plain):
    """torchvision v2 on tensors that torchvision's own decoder made."""

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        image_file, mask_file = self.files[number]
        image = decode_image(str(image_file), ImageReadMode.RGB)
        mask = decode_image(str(mask_file))
        image = tv.resize(image, list(SIZE), antialias=True)
        mask = tv.resize(mask, list(SIZE), interpolation=v2.InterpolationMode.NEAREST_EXACT)
        image = tv.normalize(tv.to_dtype(image, torch.float32, scale=True), list(MEAN), list(STD))
        return image, torch.from_numpy(self.lookup)[mask[0].long()]


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def epoch(
    dataset: Dataset, workers: int, images: int, then: Callable | None, **options: object
) -> list[float]:
    """Images per second and per second of processor time, over so many images in random order."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=images)
    loader = DataLoader(dataset, BATCH, sampler=sampler, num_workers=workers, drop_last=True, **options)
    iterator = iter(loader)
    next(iterator)  # the workers have started
    begin, cpu = time.perf_counter(), cpu_seconds()
    for batch in iterator:
        if then is not None:
            then(batch)
    seconds = time.perf_counter() - begin
    del iterator, loader  # ends the workers, so that their time counts
    return images / seconds, images / (cpu_seconds() - cpu)


def loading(source: SegmentationDataset, rounds: int) -> None:
    encoding = source.encoding
    lookup = np.full(256, 255, dtype=np.int64)
    for index in range(len(source.labels)):
        lookup[encoding._values[index]] = index
    begin = time.perf_counter()
    source.decode_once()
    once = time.perf_counter() - begin
    floats = lambda batch: (normalize(batch[0]), batch[1].long())  # noqa: E731
    ways: dict[str, tuple[Dataset, int, Callable | None, dict]] = {
        "Pillow dataset": (Plain(source, lookup), 512, None, {}),
        "torchvision v2 on tensors": (Tensors(source, lookup), 512, None, {}),
        "ours": (Split(source), 32768, None, {"collate_fn": as_is}),
        "ours, to float on the CPU": (Split(source), 8192, floats, {"collate_fn": as_is}),
    }
    print("| workers | loader | images/s | times Pillow | per core | times Pillow |")
    print("|---|---|---|---|---|---|")
    for workers in (0, 1, 2):
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (dataset, images, then, options) in ways.items():
                results[name].append(epoch(dataset, workers, images, then, **options))
        medians = {name: np.median(rows, axis=0) for name, rows in results.items()}
        base = medians["Pillow dataset"]
        for name, (rate, per_core) in medians.items():
            print(
                f"| {workers} | {name} | {rate:.0f} | {rate / base[0]:.1f} | {per_core:.0f} "
                f"| {per_core / base[1]:.1f} |"
            )
    print(f"\nDecoding all {len(source)} images once took {once:.2f} s.\n")


def per_image(source: SegmentationDataset, color: bool) -> Iterator[Callable[[Tensor, Tensor], object]]:
    """Our augmentation of a batch, and the same image by image."""
    settings = AugmentConfig(**DEFAULT, **(COLORS if color else {}))
    ours = Augment(settings, SIZE, seed=0)
    steps = [v2.RandomHorizontalFlip(0.5)]
    fill = {tv_tensors.Image: [round(255 * mean) for mean in MEAN], tv_tensors.Mask: 255}
    steps.append(
        v2.RandomAffine(5.0, scale=(0.5, 2.0), interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
    )
    if color:
        steps.append(v2.ColorJitter(0.3, 0.3, 0.3, 0.05))
    steps += [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    transform = v2.Compose(steps)

    def theirs(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [transform(tv_tensors.Image(i), tv_tensors.Mask(m)) for i, m in zip(image, mask, strict=True)]
        images, masks = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(masks).long()

    yield from (ours, theirs)


def augmenting(source: SegmentationDataset, rounds: int, device: torch.device) -> None:
    image, mask = source.read(range(BATCH))
    image, mask = image.to(device), mask.to(device)
    print(f"| on {device.type} | ours, ms per image | torchvision v2, image by image | times |")
    print("|---|---|---|---|")
    for name, color in (("flip, scale, rotate", False), ("and brightness, contrast, saturation, hue", True)):
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for place, function in enumerate(per_image(source, color)):
                function(image, mask)
                begin = time.perf_counter()
                for _ in range(5):
                    function(image, mask)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[place].append((time.perf_counter() - begin) / 5 / BATCH * 1e3)
        ours, theirs = map(statistics.median, seconds)
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with tempfile.TemporaryDirectory() as folder:
        places = {"images": str(options.images), "annotations": str(options.annotations)}
        subset = SubsetConfig(size=None, keep_empty=True)
        config = Config(data=DataConfig(**places, prepared_dir=f"{folder}/prepared", subset=subset))
        prepare(config)
        prepared, _ = prepared_sets(config)
        source = SegmentationDataset(prepared.subset_file, prepared.image_dir, SIZE)
        loading(source, options.rounds)
        augmenting(source, options.rounds, torch.device("cpu"))
        if torch.cuda.is_available():
            augmenting(source, options.rounds, torch.device("cuda"))


if __name__ == "__main__":
    main()
