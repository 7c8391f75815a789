"""Checks of settings that depend on each other, on files or on installed packages. No torch, no Hydra.

config.py declares which values a setting may have by itself.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

from cocoseg.config import AUTO, DEFAULT_WEIGHTS, Config, DataConfig, PredictConfig
from cocoseg.config_checks import ELSEWHERE, convert, declarations, shown, unknown_key
from cocoseg.durations import SLURM, parse_moment
from cocoseg.errors import CocosegError
from cocoseg.rank_environment import may_be_several

# Choices inside untyped nodes, which have no declarations.
CLASS_WEIGHTS = ("none", "enet")
WEIGHTS_PARTS = ("all", "body", "encoder")
# Lightning's strategies that start train.py for each device.
STRATEGIES = (AUTO, "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
# Formats of `export`, and the packages that each needs beside our own dependencies.
EXPORTS = {"pth": (), "onnx": ("onnx", "onnxruntime", "onnxscript"), "torch_export": ()}
# Paths of the data, by their keys below `data`.
PLACES = ("images", "annotations", "masks", "val_images", "val_annotations", "val_masks")
MASKS_HINT = "masks as image files: data=masks data.images=… data.masks=…"
END_HINT = "set trainer.max_time, max_epochs or max_steps"


def check(config: Config, *, may_download: bool = False) -> None:
    """Check settings that depend on each other or on files, before any file is read.

    Args:
        config: all settings, each checked by itself.
        may_download: the program may fetch what is missing, where `data.download` lets it.

    Raises:
        CocosegError: names the key.
    """
    _check_data(config.data)
    if config.resume and config.ckpt_path:
        raise CocosegError("resume=auto finds its checkpoint itself; leave out ckpt_path")
    _check_end(config)
    least, most = config.augment.scale
    if least > most:
        raise CocosegError(f"augment.scale is {[least, most]}; it must be [least, most], as in [0.5, 2.0]")
    sweep = config.sweep
    if sweep.method is None and (sweep.trials, sweep.total_time, sweep.space) != (None, None, {}):
        raise CocosegError("sweep: no method is chosen; add sweep=tpe, sweep=random or sweep=grid")
    check_export(config.export, key="export")
    if config.export_resize and not {"onnx", "torch_export"} & set(config.export):
        raise CocosegError("export_resize is for onnx and torch_export files; add export=[pth,onnx]")
    _check_nodes(config)
    # What is missing on disk comes last: to get it may take hours, to mend a setting takes none.
    if config.model is not None and str(config.model.get("_target_")).startswith("cocoseg."):
        _check_weights(config.model, resumes=config.ckpt_path is not None or config.resume is not None)
    _require_file("ckpt_path", config.ckpt_path)
    _check_extra_files(config.data)
    if config.data.own is None and not (may_download and config.data.fetches):
        _check_places(config.data)


def check_predict(config: PredictConfig) -> None:
    """Check settings that depend on each other or on files, before any file is read.

    Raises:
        CocosegError: names the key.
    """
    check_checkpoint(config.checkpoint)
    if config.input is None:
        raise CocosegError("input is not given: input=<image, folder or pattern>")
    _require_file("annotations", config.annotations)
    if config.coco_dataset is None and (config.min_score, config.min_area) != (0, 0):
        raise CocosegError("min_score and min_area need coco_dataset=rle or coco_dataset=polygon")
    check_prediction(config.scale, config.tile)


def check_checkpoint(checkpoint: str | None) -> str:
    """Return the path of the file.

    Raises:
        CocosegError: it is not given, or not there.
    """
    if checkpoint is None:
        raise CocosegError("checkpoint is not given: checkpoint=<segmentation_model.pth>")
    _require_file("checkpoint", checkpoint)
    return checkpoint


def check_prediction(scale: Any, tile: Any) -> None:
    """Raise CocosegError where an argument of `cocoseg.inference.predictor.Predictor` is out of range."""
    checked = convert({"scale": scale, "tile": False if tile is None else tile}, PredictConfig).tile
    fits = checked is not True
    if isinstance(checked, list):
        # `convert` accepts 512 as [512, 512] and 512.0 as 512. A predictor accepts neither.
        fits = not isinstance(tile, int) and all(isinstance(side, Integral) for side in tile)
    if not fits:
        raise CocosegError(f"tile is {shown(tile)}; it must be {declarations(PredictConfig)['tile'].allowed}")


def check_export(formats: Sequence[str], *, key: str) -> None:
    """Raise CocosegError where a format is unknown, or packages are missing that it needs."""
    for name in formats:
        if name not in EXPORTS:
            raise CocosegError(f"{key}: {name!r} is no format; known: {', '.join(EXPORTS)}")
        missing = [package for package in EXPORTS[name] if find_spec(package) is None]
        if missing:
            raise CocosegError(f"{key}: {name} needs further packages; pip install {' '.join(missing)}")


def how_to_fetch(data: DataConfig) -> str:
    """Advice where something is missing and is not being fetched."""
    if data.fetches:
        return "python prepare.py fetches what is missing"
    if data.download is False:
        return "data.download=false keeps prepare.py from fetching what is missing"
    return "python prepare.py data.download=true fetches what is missing"


def _check_data(data: DataConfig) -> None:
    larger = data.cache_size or data.image_size
    if any(side < least for side, least in zip(larger, data.image_size, strict=True)):
        raise CocosegError(
            f"data.cache_size is {larger}; it must be no smaller than data.image_size {data.image_size}, "
            "or null for that size"
        )
    if data.own is not None:
        if data.extra:
            raise CocosegError("data.extra adds to data.images; leave it out beside data._target_")
        return
    if any((extra.annotations is None) == (extra.masks is None) for extra in data.extra):
        raise CocosegError("data.extra: images need annotations or masks, and not both")
    needed = {"images": "the folder of the images"}
    if data.masks is None:
        needed["annotations"] = f"the COCO instances file (JSON); {MASKS_HINT}"
    if data.shapes is not None:
        needed = {"root": "the folder to draw the shapes in"}
    elif data.root is None:
        places = (str(getattr(data, key)) for key in PLACES)
        below = sorted(place.removeprefix("None/") for place in places if place.startswith("None/"))
        if below:  # ${data.root}/train and the like
            raise CocosegError(f"data.root is not set: the folder that holds {', '.join(below)}")
    for key, meaning in needed.items():
        if getattr(data, key) is None:
            raise CocosegError(f"data.{key} is not set: {meaning}")
    kind, other = ("masks", "annotations") if data.masks is not None else ("annotations", "masks")
    for key, own in ((other, kind), (f"val_{other}", f"val_{kind}")):
        if getattr(data, key) is not None:
            raise CocosegError(f"data.{key} is set, but data.{kind} too; give data.{own} alone; {MASKS_HINT}")
    if data.val_images is not None and getattr(data, f"val_{kind}") is None:
        raise CocosegError(f"data.val_images is set without data.val_{kind}, which says what is on them")
    if data.val_masks is not None and data.val_images is None:
        raise CocosegError("data.val_masks is set without data.val_images, the folder of their images")


def _check_extra_files(data: DataConfig) -> None:
    """Check that folders and files of `data.extra` exist; they are never fetched."""
    for extra in data.extra:
        for folder in filter(None, (extra.images, extra.masks)):
            if not Path(folder).is_dir():
                raise CocosegError(f"data.extra: no folder {folder}; set data.extra to what is there")
        _require_file("data.extra", extra.annotations)


def _check_places(data: DataConfig) -> None:
    """Check that folders and files exist; those of drawn shapes need not be there yet."""
    keys, advice = ["val_images", "val_annotations", "val_masks"], ""
    if isinstance(data.classes, str):
        keys.append("classes")
    if data.shapes is None:
        keys += ["images", "annotations", "masks"]
        # Without annotations_url nothing can be fetched: the data are the user's own.
        if data.root is not None and data.annotations_url is not None:
            advice = f"; {how_to_fetch(data)}"
            if data.download is None and not data.fetches:
                advice += "; your own data: data=custom data.images=… data.annotations=…"
        if data.root is not None and not Path(data.root).is_dir():
            held = "the COCO instances file" if data.masks is None else "the masks"
            raise CocosegError(
                f"data.root: no folder {data.root}; it should hold the images ({data.images}) and {held} "
                f"({data.masks or data.annotations}){advice}"
            )
    for key in keys:
        path = getattr(data, key)
        is_folder = key.endswith(("images", "masks"))
        what, exists = ("folder", Path.is_dir) if is_folder else ("file", Path.is_file)
        is_image = path is not None and (Path(path).is_dir() or Path(path).suffix.lower() == ".png")
        if is_image and key.endswith("annotations"):
            raise CocosegError(f"data.{key}: {path} is no COCO instances file (JSON); {MASKS_HINT}")
        if path is not None and not exists(Path(path)):
            other = f", or data.root to what holds it{advice}" if data.root is not None else ""
            raise CocosegError(f"data.{key}: no {what} {path}; set data.{key}{other}")


def _check_end(config: Config) -> None:
    """Check the limits of the run, and settings that are shares of its length."""
    trainer, until = config.trainer, config.budget.until
    if until not in (None, SLURM):
        parse_moment(until, key="budget.until")
    has_limit = (config.time_limit or trainer.get("max_time") or until) is not None
    for key in ("min_epochs", "min_steps"):
        if has_limit and trainer.get(key):
            raise CocosegError(f"trainer.{key} would break trainer.max_time; set one of them to null")
    if (cooldown := config.schedule.cooldown) > 1 - config.schedule.warmup:
        raise CocosegError(f"schedule.cooldown is {cooldown}; it must be at most 1 - schedule.warmup")
    if has_limit or any((trainer.get(key) or 0) > 0 for key in ("max_epochs", "max_steps")):
        return
    if config.augment.start_size != 1:
        raise CocosegError(f"augment.start_size grows with the run's progress; {END_HINT}")
    if 0 < config.finetune.frozen < 1:
        raise CocosegError(f"finetune.frozen is a share of the run; {END_HINT}")


def _check_nodes(config: Config) -> None:
    """Check choices within untyped nodes, and several devices."""
    trainer = config.trainer
    for key in ELSEWHERE:
        if key.removeprefix("trainer.") in trainer:
            raise CocosegError(unknown_key(key, Config))
    _require_choice("trainer.strategy", trainer.get("strategy"), STRATEGIES, "or have a _target_")
    weights = (config.loss or {}).get("class_weights")
    _require_choice("loss.class_weights", weights, CLASS_WEIGHTS, "or a list")
    if may_be_several(trainer) and config.data.batch_size == AUTO:
        raise CocosegError("data.batch_size=auto is for one device; give a number")
    lr = 0.0 if config.optimizer is None else config.optimizer.get("lr")
    if config.finetune.encoder_lr != 1 and not isinstance(lr, int | float):
        raise CocosegError("finetune.encoder_lr is a factor of optimizer.lr, which is not set")


def _check_weights(model: Mapping[str, Any], *, resumes: bool) -> None:
    """Check the weights that a built-in network begins with; a custom network checks its own."""
    weights, encoder = model.get("weights"), model.get("encoder")
    part = model.get("weights_part", "all")
    _require_choice("model.weights_part", part, WEIGHTS_PARTS, "body is all but the head")
    is_default = weights == DEFAULT_WEIGHTS and encoder is not None
    if not (weights is None or is_default or resumes or Path(str(weights)).is_file()):
        default = "" if encoder is None else f", {DEFAULT_WEIGHTS} (timm's for that encoder)"
        raise CocosegError(f"model.weights: no file {weights}; it must be one{default} or null")


def _require_choice(key: str, value: Any, choices: Sequence[str], more: str) -> None:
    if isinstance(value, str) and value not in choices:
        raise CocosegError(f"{key} is {value!r}; it must be one of {', '.join(choices)}, {more}")


def _require_file(key: str, path: str | None) -> None:
    if path is not None and not Path(path).is_file():
        raise CocosegError(f"{key}: no file {path}")
