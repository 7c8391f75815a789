"""Networks, loaders and trainers small enough for a test."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cocoseg.budget.budget import Budget
from cocoseg.config import Config, DataConfig, PrepareConfig
from cocoseg.labels import LabelClass, LabelMap
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from cocoseg.training.checkpoints import WholeCheckpointIO
from cocoseg.training.losses import CrossEntropyLoss
from cocoseg.training.module import SegmentationModule

LABELS = LabelMap(
    (
        LabelClass((), "background", (0, 0, 0)),
        LabelClass((2,), "cat", (255, 0, 0)),
        LabelClass((5,), "dog", (0, 0, 255)),
    )
)
# Overrides for a run of the whole recipe in a second; an end is to be added.
TINY_RUN = (
    "data.image_size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=0",
    "prepare.workers=1",
    "model.base_channels=2",
    "model.depth=2",
    "trainer.max_time=null",
    "trainer.accelerator=cpu",
)
NETWORK = {"_target_": "cocoseg.UNet", "num_classes": 3, "base_channels": 4, "depth": 2}
SPEC = ModelSpec(NETWORK, LABELS, (16, 16))


def tiny_unet(seed: int = 0) -> UNet:
    """The network that SPEC describes."""
    torch.manual_seed(seed)
    return UNet(num_classes=3, base_channels=4, depth=2)


class Reads(nn.Conv2d):
    """A network whose logits for three classes are, to begin with, the image's three channels."""

    def __init__(self) -> None:
        super().__init__(3, 3, kernel_size=1)
        with torch.no_grad():
            self.weight.copy_(torch.eye(3)[:, :, None, None])
            self.bias.zero_()


def painted(prediction: Tensor) -> Tensor:
    """Image (B, 3, H, W) for which `Reads` predicts these class indices (B, H, W)."""
    return nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()


def tiny_module(net: nn.Module | None = None, *, lr: float = 1e-2) -> SegmentationModule:
    return SegmentationModule(
        net=net or tiny_unet(),
        loss=CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        spec=SPEC,
    )


def tiny_trainer(folder: Path, **options: Any) -> L.Trainer:
    """A silent trainer on the CPU that writes no log and no checkpoint unless told to."""
    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "plugins": [WholeCheckpointIO(Budget(None))],
    }
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **{**defaults, **options})


def loader(*batches: tuple[Tensor, Tensor]) -> DataLoader[tuple[Tensor, Tensor]]:
    """These batches, in this order."""
    return DataLoader(list(batches), batch_size=None)


def random_batch(*, size: int = 16, images: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 3, size, size, generator=generator)
    return image, torch.randint(0, 3, (images, size, size), generator=generator)


def shapes_config(root: Path, prepared: Path, *, seed: int = 0, **data: Any) -> Config:
    """Settings for the data set at `root`, prepared in this process at `prepared`."""
    places = {"images": str(root / "images"), "annotations": str(root / "annotations" / "instances.json")}
    small = {"image_size": [32, 32], "batch_size": 4, "num_workers": 0, "val_fraction": 0.25}
    return Config(
        seed=seed,
        data=DataConfig(**{**places, **small, "prepared_dir": str(prepared), **data}),
        prepare=PrepareConfig(workers=1),
    )
