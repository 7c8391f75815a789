"""From a COCO-format data set and a wall-clock limit to a trained, exported semantic segmentation model."""

from typing import Any

__version__ = "0.1.0"

# Loaded on first use: torch alone takes over a second to import.
_PUBLIC = {
    "CocosegError": "cocoseg.errors",
    "LabelMap": "cocoseg.labels",
    "ResNetUNet": "cocoseg.resnet_unet",
    "ResidualUNet": "cocoseg.residual",
    "SegmentationDataset": "cocoseg.dataset",
    "UNet": "cocoseg.unet",
    "create_segmentation_masks": "cocoseg.masks",
    "load_model": "cocoseg.model",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cocoseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
