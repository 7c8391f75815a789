"""The settings of the run that a model comes from, so that it is scored on the data it was trained for."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cocoseg.errors import CocosegError

OTHER_DATA = ("data", "experiment", "data.images", "data.annotations")  # typed: none of the run's settings
PLACES = ("images", "annotations", "val_images", "val_annotations")
OF_THE_MACHINE = ("batch_size", "num_workers")


def run_settings(checkpoint: str) -> dict[str, Any] | None:
    """The `config.yaml` of the run that a model file or checkpoint lies in, or None where there is none.

    Raises:
        CocosegError: it is damaged.
    """
    folder = Path(checkpoint).parent
    for path in (folder / "config.yaml", folder.parent / "config.yaml"):
        if not path.is_file():
            continue
        try:
            content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            if "${" in str(content):  # it was resolved when it was written; no file may look around here
                raise ValueError("it holds an interpolation")
            if not isinstance(content, dict) or not {"data", "masks", "seed"} <= content.keys():
                continue  # another program's
            return {key: content[key] for key in ("data", "masks", "seed")}
        except (OSError, ValueError, TypeError, YAMLError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise CocosegError(f"{path}: the settings of the run can't be read ({reason})") from error
    return None


def as_trained(config: DictConfig, trained: Mapping[str, Any] | None, keys: Collection[str]) -> DictConfig:
    """The settings with data, masks and seed as the run had them, where nothing else was typed.

    A typed `data.root` moves what lay below the run's own.

    Args:
        config: as composed.
        trained: what `run_settings` found.
        keys: those that were typed, groups included.

    Raises:
        CocosegError: the run's settings don't fit those of this version.
    """
    if trained is None or set(OTHER_DATA) & set(keys):
        return config
    data = dict(trained["data"])
    if "data.root" in keys and data.get("root") is not None:
        for place in PLACES:
            if data.get(place) is not None and Path(data[place]).is_relative_to(data["root"]):
                data[place] = str(Path(config.data.root, Path(data[place]).relative_to(data["root"])))
    taken = {
        "seed": trained["seed"],
        "data": {key: value for key, value in data.items() if key not in OF_THE_MACHINE},
        "masks": trained["masks"],
    }
    try:
        return OmegaConf.merge(config, _without(taken, keys, ""))
    except OmegaConfBaseException as error:
        raise CocosegError(
            f"the settings of the run that trained the model don't fit ({str(error).splitlines()[0]}); "
            "give data=…"
        ) from error


def _without(settings: Mapping[str, Any], keys: Collection[str], path: str) -> dict[str, Any]:
    """The settings but those that were typed."""
    kept = {}
    for key, value in settings.items():
        place = f"{path}{key}"
        if place in keys:
            continue
        kept[key] = _without(value, keys, f"{place}.") if isinstance(value, Mapping) else value
    return kept
