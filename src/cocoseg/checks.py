"""What a schema can't say of settings: ranges, choices, what crosses fields. No torch, no Hydra."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cocoseg.config import (
    ACCELERATORS,
    AUTO,
    CLASS_WEIGHTS,
    CROWDS,
    ENCODINGS,
    EXPORTS,
    IMAGENET,
    LABELS,
    LEAST_TILE,
    OTHERS,
    OVERLAPS,
    PIXELS,
    PRECISIONS,
    PRUNERS,
    RASTERIZERS,
    SCHEDULES,
    STRATEGIES,
    SWEEPS,
    WEIGHTS_PARTS,
    AugmentConfig,
    Config,
    DataConfig,
    MasksConfig,
    PredictConfig,
    ShapesConfig,
    SubsetConfig,
    SweepConfig,
)
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError


def check_predict(config: PredictConfig) -> None:
    """Check what can be checked before anything is read.

    Raises:
        CocosegError: names the key.
    """
    _check_keys(config, "")
    for key, what in (
        ("checkpoint", "segmentation_model.pth"),
        ("input", "picture, folder or pattern"),
    ):
        if getattr(config, key) is None:
            raise CocosegError(f"{key} is not given: {key}=<{what}>")
    for key in ("checkpoint", "annotations"):
        place = getattr(config, key)
        if place is not None and not Path(place).is_file():
            raise CocosegError(f"{key}: no file {place}")
    for key, known in (
        ("values", PIXELS),
        ("accelerator", ACCELERATORS),
        ("precision", PRECISIONS),
    ):
        if getattr(config, key) not in known:
            raise CocosegError(f"{key} is {getattr(config, key)!r}; it must be one of {', '.join(known)}")
    for key in ("batch_size", "workers"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise CocosegError(f"{key} is {value}; it must be at least 1")
    check_prediction(config.scale, config.tile, config.scales)


def check(config: Config, *, may_download: bool = False) -> None:
    """Check what can be checked before anything is read.

    Args:
        config: all settings.
        may_download: the program may fetch what is missing, where `data.download` lets it.

    Raises:
        CocosegError: names the key.
    """
    _check_keys(config, "")
    if not 0 <= config.seed < 2**32:
        raise CocosegError(f"seed is {config.seed}; it must lie between 0 and {2**32 - 1}")
    check_masks(config.masks)
    _check_data(config.data)
    if not (may_download and config.data.fetches):
        _check_places(config.data, with_images=not config.prepare.check_only)
    if config.prepare.check_only and not may_download:
        raise CocosegError("prepare.check_only is for prepare.py")
    if config.prepare.workers is not None and config.prepare.workers < 1:
        raise CocosegError(f"prepare.workers is {config.prepare.workers}; it must be at least 1, or null")
    _check_time(config)
    _check_sweep(config.sweep)
    _check_augment(config.augment)
    augment = config.augment
    if augment.start_size != 1 and not _has_an_end(config.trainer):
        raise CocosegError(
            "augment.start_size grows with the run's progress; set trainer.max_time, max_epochs or max_steps"
        )
    if not isinstance(config.compile, bool):
        raise CocosegError(f"compile is {config.compile!r}; it must be true or false")
    _check_loss(config.loss)
    _check_model(config.model, goes_on=config.ckpt_path is not None or config.resume is not None)
    _check_finetune(config)
    _check_devices(config)
    check_export(config.export, key="export")
    if not isinstance(config.callbacks, Mapping):
        raise CocosegError(f"callbacks is {config.callbacks!r}; it must map names to a _target_ each")
    if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
        raise CocosegError(f"ckpt_path: no file {config.ckpt_path}")


def _check_time(config: Config) -> None:
    limited = parse_duration(config.trainer.get("max_time"), key="trainer.max_time") is not None
    parse_duration(config.budget.extend, key="budget.extend")
    if parse_duration(config.budget.checkpoint_every, key="budget.checkpoint_every") is None:
        raise CocosegError('budget.checkpoint_every is null; a kill would cost everything: "00:00:05:00"')
    for key in ("min_epochs", "min_steps"):
        if limited and config.trainer.get(key):
            raise CocosegError(f"trainer.{key} would break trainer.max_time; set one of them to null")
    if not 0 < config.budget.validation_share < 1:
        raise CocosegError(
            f"budget.validation_share is {config.budget.validation_share}; it must lie between 0 and 1"
        )
    if config.schedule.name not in SCHEDULES:
        raise CocosegError(
            f"schedule.name is {config.schedule.name!r}; it must be one of {', '.join(SCHEDULES)}"
        )
    if not 0 <= config.schedule.warmup < 1:
        raise CocosegError(f"schedule.warmup is {config.schedule.warmup}; it must lie in 0 <= warmup < 1")
    if not 0 < config.schedule.cooldown <= 1 - config.schedule.warmup:
        raise CocosegError(
            f"schedule.cooldown is {config.schedule.cooldown}; it must lie in 0 < cooldown <= 1 - warmup"
        )
    if config.resume not in (None, "auto"):
        raise CocosegError(f"resume is {config.resume!r}; it must be auto or null")
    if config.resume and config.ckpt_path:
        raise CocosegError("resume=auto finds its checkpoint itself; leave out ckpt_path")


def _check_sweep(sweep: SweepConfig) -> None:
    if sweep.method not in (None, *SWEEPS):
        raise CocosegError(f"sweep.method is {sweep.method!r}; choose with sweep={', '.join(SWEEPS)}")
    parse_duration(sweep.total_time, key="sweep.total_time")
    if sweep.trials is not None and sweep.trials < 1:
        raise CocosegError(f"sweep.trials is {sweep.trials}; it must be at least 1")
    if sweep.pruner not in PRUNERS:
        raise CocosegError(f"sweep.pruner is {sweep.pruner!r}; it must be one of {', '.join(PRUNERS)}")
    if sweep.method is None and (sweep.trials, sweep.total_time, sweep.space) != (None, None, {}):
        raise CocosegError(f"sweep: how to search is not chosen; add sweep={', '.join(SWEEPS)}")
    if sweep.name is not None and not re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", sweep.name):
        raise CocosegError(f"sweep.name is {sweep.name!r}; it becomes a folder: letters, digits and . _ + -")


def _has_an_end(trainer: Mapping[str, Any]) -> bool:
    numbers = trainer.get("max_epochs"), trainer.get("max_steps")
    return trainer.get("max_time") is not None or any(n is not None and n > 0 for n in numbers)


def _check_devices(config: Config) -> None:
    strategy, devices = config.trainer.get("strategy", AUTO), config.trainer.get("devices", 1)
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise CocosegError(
            f"trainer.strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}, or have a _target_"
        )
    several = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    if several != 1 and config.data.batch_size == AUTO:
        raise CocosegError("data.batch_size=auto is for one device; give a number")


def _check_loss(loss: Any) -> None:
    rule = loss.get("class_weights") if isinstance(loss, Mapping) else None
    if isinstance(rule, str) and rule not in CLASS_WEIGHTS:
        raise CocosegError(
            f"loss.class_weights is {rule!r}; it must be one of {', '.join(CLASS_WEIGHTS)}, or a list"
        )


def _check_model(model: Any, *, goes_on: bool) -> None:
    """The weights that one of our networks begins with; those of others check their own."""
    if not isinstance(model, Mapping) or not str(model.get("_target_")).startswith("cocoseg."):
        return
    weights, part, encoder = model.get("weights"), model.get("weights_part", "all"), model.get("encoder")
    if part not in WEIGHTS_PARTS:
        raise CocosegError(
            f"model.weights_part is {part!r}; it must be one of {', '.join(WEIGHTS_PARTS)}; body is all "
            "but the head"
        )
    if weights is None:
        return
    if not isinstance(weights, str):
        raise CocosegError(f"model.weights is {weights!r}; it must be a name, a file or null")
    if weights in IMAGENET:
        if encoder is None:
            raise CocosegError(
                f"model.weights={weights} is for a ResNet (model=unet_resnet34, unet_resnet50); here it must "
                "be a file, or null"
            )
        if encoder in ("resnet18", "resnet34") and weights != IMAGENET[0]:
            raise CocosegError(f"model.weights={weights}: for {encoder} there is only {IMAGENET[0]}")
    elif not goes_on and not Path(weights).is_file():
        raise CocosegError(
            f"model.weights: no file {weights}; it must be one, {' or '.join(IMAGENET)}, or null"
        )


def _check_finetune(config: Config) -> None:
    finetune = config.finetune
    if not 0 <= finetune.frozen <= 1:
        raise CocosegError(f"finetune.frozen is {finetune.frozen}; a share of the run lies in 0 … 1")
    if not 0 < finetune.encoder_lr < float("inf"):
        raise CocosegError(
            f"finetune.encoder_lr is {finetune.encoder_lr}; it must be above 0; "
            "finetune.frozen=1.0 trains none of the encoder"
        )
    if 0 < finetune.frozen < 1 and not _has_an_end(config.trainer):
        raise CocosegError(
            "finetune.frozen is a share of the run; set trainer.max_time, max_epochs or max_steps"
        )
    slowed = finetune.encoder_lr != 1 and isinstance(config.optimizer, Mapping)
    if slowed and not isinstance(config.optimizer.get("lr"), int | float):
        raise CocosegError("finetune.encoder_lr is a factor of optimizer.lr, which is not set")


def _check_augment(augment: AugmentConfig) -> None:
    for key in ("flip", "greyscale", "blur", "cutout", "class_mix"):
        if not 0 <= getattr(augment, key) <= 1:
            raise CocosegError(f"augment.{key} is {getattr(augment, key)}; a probability lies in 0 … 1")
    for key, most in (("rotate", 180), ("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
        if not 0 <= getattr(augment, key) <= most:
            raise CocosegError(f"augment.{key} is {getattr(augment, key)}; it must lie in 0 … {most}")
    if not 0.1 <= augment.start_size <= 1:
        raise CocosegError(f"augment.start_size is {augment.start_size}; it must lie in 0.1 … 1")
    scale = augment.scale
    if len(scale) != 2 or not 0.05 <= scale[0] <= scale[1] <= 20:
        raise CocosegError(
            f"augment.scale is {scale}; it must be [least, most], as in [0.5, 2.0], within 0.05 … 20"
        )


def _check_keys(settings: Any, path: str) -> None:
    """Refuse keys that the schema does not have; Hydra lets them pass where `+` forces them in."""
    known = [field.name for field in fields(settings)]
    for key, value in vars(settings).items():
        if key not in known:
            raise CocosegError(f"{path}{key}: no such key; known: {', '.join(known)}")
        if is_dataclass(value):
            _check_keys(value, f"{path}{key}.")


def check_other(other: str) -> None:
    """Raises CocosegError where `data.subset.other` is none of its values."""
    if other not in OTHERS:
        raise CocosegError(f"data.subset.other is {other!r}; it must be one of {', '.join(OTHERS)}")


def check_export(formats: Sequence[str], *, key: str) -> None:
    """Raises CocosegError where a format is unknown, or packages are missing that it needs."""
    for name in formats:
        if name not in EXPORTS:
            raise CocosegError(f"{key}: {name!r} is no format; known: {', '.join(EXPORTS)}")
        missing = [package for package in EXPORTS[name] if find_spec(package) is None]
        if missing:
            raise CocosegError(
                f"{key}: {name} needs {', '.join(missing)}; install with pip install -e '.[{name}]'"
            )


def check_labels(labels: Any) -> None:
    """Raises CocosegError where `data.labels` is none of its forms."""
    if isinstance(labels, str):
        if labels not in LABELS:
            raise CocosegError(
                f"data.labels is {labels!r}; it must be one of {', '.join(LABELS)}, or groups as in "
                "{vehicle: [car, bus], animal: [dog, cat]}"
            )
        return
    if not isinstance(labels, Mapping) or not labels:
        raise CocosegError(f"data.labels is {labels!r}; groups are written {{vehicle: [car, bus], …}}")
    for name, members in labels.items():
        if not isinstance(name, str) or not name or name == "background":
            raise CocosegError(f"data.labels: {name!r} is no name for a group")
        if not isinstance(members, Sequence) or isinstance(members, str) or not members:
            raise CocosegError(f"data.labels.{name} is {members!r}; it must be a list of names or ids")
        if not all(isinstance(member, str | int) and not isinstance(member, bool) for member in members):
            raise CocosegError(f"data.labels.{name}: {members!r} holds what is neither a name nor an id")


def check_masks(masks: MasksConfig) -> None:
    """Raises CocosegError where a rule has another than its known values."""
    for key, known in (
        ("overlap", OVERLAPS),
        ("rasterizer", RASTERIZERS),
        ("crowd", CROWDS),
        ("encoding", ENCODINGS),
    ):
        value = getattr(masks, key)
        if value not in known:
            raise CocosegError(f"masks.{key} is {value!r}; it must be one of {', '.join(known)}")


def check_prediction(scale: Any, tile: Any, scales: Any) -> None:
    """Raises CocosegError where a setting of `cocoseg.predictor.Predictor` is out of range."""
    if scale is not None and not 0.01 <= scale <= 100:
        raise CocosegError(f"scale is {scale}; it must lie in 0.01 … 100, or be null: the size of training")
    if tile is not None and tile is not False and tile != AUTO:
        sides = list(tile) if isinstance(tile, Sequence) and not isinstance(tile, str) else []
        if len(sides) != 2 or not all(type(side) is int and side >= LEAST_TILE for side in sides):
            raise CocosegError(
                f"tile is {tile!r}; it must be auto, false, or [height, width] from {LEAST_TILE} pixels up"
            )
    if not scales or not all(0.1 <= factor <= 10 for factor in scales):
        raise CocosegError(
            f"scales is {list(scales)}; it must list factors in 0.1 … 10, as in [0.75, 1, 1.25]"
        )


def _check_data(data: DataConfig) -> None:
    if len(data.image_size) != 2 or min(data.image_size) < 1:
        raise CocosegError(f"data.image_size is {data.image_size}; it must be [height, width] in pixels")
    if isinstance(data.batch_size, str) and data.batch_size != AUTO:
        raise CocosegError(f"data.batch_size is {data.batch_size!r}; it must be a number, or auto")
    for key, least in (("batch_size", 1), ("num_workers", 0), ("max_image_bytes", 1)):
        value = getattr(data, key)
        if isinstance(value, int) and value < least:
            raise CocosegError(f"data.{key} is {value}; it must be at least {least}")
    larger = data.cache_size or data.image_size
    if len(larger) != 2 or larger[0] < data.image_size[0] or larger[1] < data.image_size[1]:
        raise CocosegError(
            f"data.cache_size is {larger}; it must be [height, width] in pixels, no smaller than "
            f"data.image_size {data.image_size}, or null for that size"
        )
    if not 0 < data.val_fraction < 1:
        raise CocosegError(f"data.val_fraction is {data.val_fraction}; it must lie between 0 and 1")
    _check_subset(data.subset)
    check_labels(data.labels)
    if data.shapes is not None:
        _check_shapes(data, data.shapes)
    elif data.images is None:
        raise CocosegError("data.images is not set: the folder of the images")
    elif data.annotations is None:
        raise CocosegError("data.annotations is not set: the COCO instances file (JSON)")
    if data.val_images is not None and data.val_annotations is None:
        raise CocosegError("data.val_images is set without data.val_annotations, which says what is on them")


def _check_subset(subset: SubsetConfig) -> None:
    if subset.size is not None and subset.size < 1:
        raise CocosegError(
            f"data.subset.size is {subset.size}; it must be at least 1, or null for all images"
        )
    if subset.min_pixels < 0:
        raise CocosegError(f"data.subset.min_pixels is {subset.min_pixels}; it must be at least 0")
    check_other(subset.other)
    for item in subset.categories or ():
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise CocosegError(f"data.subset.categories: {item!r} is neither a name nor an id")


def _check_shapes(data: DataConfig, shapes: ShapesConfig) -> None:
    for key, least in (("images", 2), ("seed", 0)):
        if getattr(shapes, key) < least:
            raise CocosegError(f"data.shapes.{key} is {getattr(shapes, key)}; it must be at least {least}")
    if data.root is None:
        raise CocosegError("data.root is not set: the folder to draw the shapes in")


def _check_places(data: DataConfig, *, with_images: bool) -> None:
    """The folders and files that must be there, drawn shapes apart."""
    if data.shapes is None:
        if data.root is not None and not Path(data.root).is_dir():
            raise CocosegError(
                f"data.root: no folder {data.root}; it should hold the images ({data.images}) and "
                f"the COCO instances file ({data.annotations}); {how_to_fetch(data)}"
            )
        if with_images:
            _check_place(data, "images", Path.is_dir)
        _check_place(data, "annotations", Path.is_file)
    if with_images:
        _check_place(data, "val_images", Path.is_dir)
    _check_place(data, "val_annotations", Path.is_file)


def _check_place(data: DataConfig, key: str, there: Callable[[Path], bool]) -> None:
    place = getattr(data, key)
    if place is not None and not there(Path(place)):
        kind = "folder" if there is Path.is_dir else "file"
        advice = f"; {how_to_fetch(data)}" if data.root is not None and data.shapes is None else ""
        raise CocosegError(
            f"data.{key}: no {kind} {place}; set data.{key}, or data.root to what holds it{advice}"
        )


def how_to_fetch(data: DataConfig) -> str:
    """What to tell a user where something is missing and is not being fetched."""
    if data.fetches:
        return "python prepare.py fetches what is missing"
    if data.download is False:
        return "data.download=false keeps prepare.py from fetching what is missing"
    return "python prepare.py data.download=true fetches what is missing"
