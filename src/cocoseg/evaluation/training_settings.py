"""Settings of an earlier run, for scoring its model on the data of its training, and for `from_run`."""

import logging
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cocoseg.config import SHAPES_ROOT, EvaluateConfig
from cocoseg.config_checks import as_dict, convert, drop_removed
from cocoseg.config_cross_checks import PLACES
from cocoseg.errors import CocosegError, first_line
from cocoseg.files import from_here, read_yaml
from cocoseg.preparation.demo_shapes import is_drawn
from cocoseg.preparation.prepared_folder import is_prepared
from cocoseg.run_folder import CONFIG

log = logging.getLogger(__name__)

# Overrides that name other data than the run's.
OTHER_DATA = ("data", "experiment", "data.images", "data.annotations", "data.masks")
NOT_TAKEN = ("batch_size", "num_workers", "extra")  # settings of `data` for a machine, or for training only


def use_training_data(config: DictConfig, keys: Collection[str]) -> DictConfig:
    """Put data, masks and seed of the run that trained `checkpoint` into the settings, below overridden keys.

    An overridden `data.root` moves the paths that lie below the run's own root. If the run had mask images,
    `data.images` and `data.masks` alone name other ones, which are read by the run's settings. If other data
    are typed in another way, no setting of the run is used.

    Args:
        config: as composed.
        keys: overridden keys, groups included.

    Raises:
        CocosegError: the run's settings are damaged or don't fit those of this version, `data.root` moves
            nothing, or there are neither settings nor data at the usual place.
    """
    OmegaConf.update(config, "data.extra", [], force_add=True)  # these images are for training only
    typed = set(OTHER_DATA).intersection(keys)
    trained: dict[str, Any] | None = None
    with suppress(CocosegError) if typed else nullcontext():
        trained = run_settings(config.checkpoint)
    are_masks = typed == {"data.images", "data.masks"} and bool(trained and trained["data"].get("masks"))
    if typed and "split" not in keys and not (config.data.val_annotations or config.data.val_masks):
        share = f"a share of {config.data.val_fraction} (data.val_fraction)"
        log.warning("warning: split=val scores %s of these images; split=all scores all", share)
    if typed and not are_masks:
        _adapt_to_other_data(config, keys, trained)
        return config
    if trained is None:
        if not Path(config.data.annotations).is_file():
            raise CocosegError(
                f"data.annotations: no file {config.data.annotations}, and no config.yaml beside the "
                "checkpoint names the data of its training; give data=… or data.root=…"
            )
        return config
    data = {key: value for key, value in trained["data"].items() if key not in NOT_TAKEN}
    if "data.root" in keys:
        data |= move_paths(data, config.data.root)
    elif are_masks:
        data |= dict.fromkeys(("root", "val_images", "val_masks"))
    return _merge(config, keys, {**trained, "data": data})


def _adapt_to_other_data(
    config: DictConfig, keys: Collection[str], trained: Mapping[str, Any] | None
) -> None:
    """Warn of `masks` settings that differ from the run's. With `split=all` keep empty images."""
    masks = trained["masks"] if trained else {}
    others = {key: value for key, value in masks.items() if config.masks.get(key) != value}
    if others:
        given = " ".join(f"masks.{key}={value}" for key, value in others.items())
        log.warning("warning: the model was trained with %s; set the same for these data", given)
    if config.split == "all" and "data.subset.keep_empty" not in keys:
        OmegaConf.update(config, "data.subset.keep_empty", True)  # false alarms show on them


def _merge(config: DictConfig, keys: Collection[str], trained: Mapping[str, Any]) -> DictConfig:
    """Put settings of a run below the overridden keys."""
    try:
        merged = config.copy()
        merged.merge_with(trained)
    except OmegaConfBaseException as error:
        raise CocosegError(
            f"the settings of the run that trained the model don't fit ({first_line(error)}); give data=…"
        ) from error
    for key in keys:
        if key.partition(".")[0] in trained:
            OmegaConf.update(merged, key, OmegaConf.select(config, key), merge=False)
    keep_places(merged, keys)
    return merged


def keep_places(config: DictConfig, keys: Collection[str]) -> None:
    """Remove from a run's settings those that would choose where this command writes.

    Shapes are drawn only in a folder that is typed, or in the default folder if it does not exist. A prepared
    folder that is not typed is used only if it is complete.

    Args:
        config: merged settings, which are changed.
        keys: overridden keys.

    Raises:
        CocosegError: a value is bad, or the shapes are not where the run drew them.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    settings = convert(values, EvaluateConfig)
    data = settings.data
    if data.shapes is not None and data.root is not None and "data.root" not in keys:
        if is_drawn(Path(data.root), **as_dict(data.shapes)):
            config.data.shapes = data.shapes = None
        elif data.root != SHAPES_ROOT or Path(data.root).exists():
            raise CocosegError(
                f"data.root: the shapes that the model was trained on are not in {data.root} any more; name "
                "a folder to draw them in, as in data.root=shapes_of_the_training"
            )
    if data.prepared_dir is None or "data.prepared_dir" in keys:
        return
    has_files = data.images is not None and (data.annotations or data.masks) is not None
    if not (has_files and is_prepared(settings)):
        config.data.prepared_dir = None


def run_settings(checkpoint: str) -> dict[str, Any] | None:
    """Read data, masks and seed of the run that trained a model; None where no `config.yaml` holds them.

    Raises:
        CocosegError: that file is damaged.
    """
    folder = Path(checkpoint).parent
    for path in (folder / CONFIG, folder.parent / CONFIG):
        try:
            if path.is_file() and (settings := read_settings(path, ("data", "masks", "seed"))):
                if own := settings["data"].get("_target_"):
                    raise CocosegError(f"{path}: the data set of the training, {own}, is not in COCO format")
                return settings
        except CocosegError as error:
            raise CocosegError(f"{error}; give data=…, or move that file away") from error
    return None


def read_settings(path: Path, keys: Collection[str] | None = None) -> dict[str, Any] | None:
    """Read the settings that a run wrote to its `config.yaml`, without those that no longer exist.

    Args:
        path: of that file.
        keys: settings and groups of settings to read; None for all.

    Returns:
        None where the file holds no settings of a run.

    Raises:
        CocosegError: it is damaged.
    """
    try:
        content = read_yaml(path)
        if not isinstance(content, dict) or not {"data", "masks", "seed"} <= content.keys():
            return None
        settings = {key: value for key, value in content.items() if keys is None or key in keys}
        if "${" in str(settings):  # a run writes no interpolation; one could read environment variables
            raise ValueError("it holds an interpolation")
        if not all(isinstance(settings[key], dict) for key in ("data", "masks")):
            raise ValueError("data and masks must be mappings")
        if not all(isinstance(settings["data"].get(key) or "", str) for key in ("root", *PLACES)):
            raise ValueError("the paths of data must be texts")
    except (OSError, ValueError, TypeError, YAMLError) as error:
        raise CocosegError(f"{path}: the settings of the run can't be read ({first_line(error)})") from error
    if removed := drop_removed(settings):
        log.warning("%s: %s: no settings any more, left out", from_here(path), ", ".join(removed))
    return settings


def move_paths(data: Mapping[str, Any], root: str) -> dict[str, Any]:
    """Move the paths of a run's data below its own root to another root. Raise CocosegError if none is."""
    before = data.get("root") or ""

    def move(paths: Mapping[str, Any]) -> dict[str, str]:
        return {
            key: str(Path(root, Path(path).relative_to(before)))
            for key, path in paths.items()
            if before and isinstance(path, str) and Path(path).is_relative_to(before)
        }

    paths = {key: data[key] for key in (*PLACES, "classes") if isinstance(data.get(key), str)}
    below = move(paths)
    if not below:
        given = " ".join(f"data.{key}={path}" for key, path in paths.items())
        raise CocosegError(
            f"data.root moves nothing: the run that trained the model had no data below one, but {given}; "
            "give these keys"
        )
    return {**below, "extra": [entry | move(entry) for entry in data.get("extra") or []]}
