"""From a COCO-format data set and a wall-clock limit to a trained, exported semantic segmentation model."""

from typing import Any

__version__ = "1.0.0"

# Loaded on first use: torch alone takes over a second to import.
_PUBLIC = {
    "CocosegError": "cocoseg.errors",
    "CrossEntropyDiceLoss": "cocoseg.training.losses",
    "CrossEntropyLoss": "cocoseg.training.losses",
    "LabelMap": "cocoseg.labels",
    "ResidualUNet": "cocoseg.networks.residual",
    "SegmentationDataModule": "cocoseg.data.datamodule",
    "SegmentationDataset": "cocoseg.data.dataset",
    "SegmentationModule": "cocoseg.training.module",
    "TimmUNet": "cocoseg.networks.timm_unet",
    "UNet": "cocoseg.networks.unet",
    "create_segmentation_masks": "cocoseg.preparation.draw_masks",
    "load_model": "cocoseg.inference.model",
    "train": "cocoseg.commands.api",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "losses":  # older configurations name cocoseg.losses.CrossEntropyLoss
        return import_module("cocoseg.training.losses")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cocoseg' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
