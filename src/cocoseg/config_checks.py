"""Checks a composed configuration against the declarations of config.py, and names what is wrong with a key.

No torch, no Hydra.
"""

import pkgutil
import re
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache, reduce
from inspect import Parameter, signature
from operator import getitem
from typing import Any, TypeVar

import msgspec
from msgspec import inspect, structs

from cocoseg.config import Settings
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError

LEAST_SIMILARITY = 0.6  # similarity from which on a known key is suggested for an unknown one
MOST_LISTED = 12  # keys of a group that are listed where none is similar

T = TypeVar("T", bound=Settings)

# Keys of earlier versions: what takes their place.
REMOVED = {
    "ema": "average the weights by callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging",
    "data.subset.stratify": "choose more images by data.subset.size",
    "data.sampling": "loss.class_weights=enet gives rare classes their weight",
    "augment.rare_crop": "loss.class_weights=enet gives rare classes their weight",
    "augment.start_strength": "augmentation has the same strength all through the run; leave it out",
    "augment.end_strength": "augmentation has the same strength all through the run; leave it out",
    "prepare.check_only": "prepare.py keeps no masks where an annotation is wrong; leave it out",
    "model.deep_supervision": "only the finest logits are trained; leave it out",
    "scales": "flip=true averages with the mirror image",
    "labels": "choose classes of the data by data.labels and data.subset.categories; the model has the same",
    "logger._target_": "loggers have names; choose logger=none logger.mine._target_=…",
    "logger.flush_secs": "loggers have names; set logger.tensorboard.flush_secs",
    "sweep.storage": "one process leads a sweep; use many machines by hydra/launcher=submitit_slurm",
    "sweep.prune": "choose sweep.pruner=none, median, halving or hyperband",
    "sweep.factor": "choose sweep.pruner=halving, which has a factor of 3",
}

# Names of other programs: what they are here.
ALIASES = {
    "learning_rate": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "img_size": "data.image_size",
    "output_dir": "run_dir",
}
# Arguments of Lightning's Trainer that are no settings of `trainer`: where they are set.
ELSEWHERE = {
    "trainer.callbacks": "choose callbacks by callbacks=…, as in callbacks=early_stopping",
    "trainer.logger": "choose loggers by logger=…, as in logger=[tensorboard,csv]",
    "trainer.default_root_dir": "run_dir=… names the folder of a run",
    "trainer.use_distributed_sampler": "each device gets images of its own already; leave it out",
}

# Types and limits in words.
TYPES = {
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.NoneType: "null",
    inspect.DictType: "a _target_ and its arguments",
    inspect.CustomType: "a duration, as in 10m, 6h, 1h30m, 1d or 01:30:00",
}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True)
class Setting:
    """A declaration of config.py.

    Attributes:
        meaning: the one line of help.
        allowed: the values that it takes, in words: `one of max, smallest`, `a number above 0`.
        types: of these values, classes of `msgspec.inspect`.
        copies: length of the list that a single value becomes: 2 for a size, 1 for most lists; 0 where a list
            is not allowed, or must be written as one.
        default: used where a configuration lacks the key.
        group: description of the group of settings that it is, or None for a single setting.
    """

    meaning: str
    allowed: str
    types: tuple[type[inspect.Type], ...]
    copies: int
    default: Any
    group: str | None


@cache
def declarations(kind: type[Settings], prefix: str = "") -> dict[str, Setting]:
    """All settings of a group, those of its own groups too: `data.subset.size` -> its declaration."""
    found: dict[str, Setting] = {}
    for field in structs.fields(kind):
        key, declared = f"{prefix}{field.encode_name}", inspect.type_info(field.type)
        types = declared.types if isinstance(declared, inspect.UnionType) else (declared,)
        texts = [text for text in getattr(field.type, "__metadata__", ()) if isinstance(text, str)]
        meaning, allowed = [*texts, "", ""][:2]
        group = next((one.cls for one in types if isinstance(one, inspect.StructType)), None)
        below = {} if group is None else declarations(group, f"{key}.")
        if below:
            example = next(other for other in below if not other.endswith("._target_"))
            allowed = f"a group of settings, as in {example}"
        found[key] = Setting(
            meaning,
            allowed or ", or ".join(map(_words, types)),
            types=tuple(map(type, types)),
            copies=max(map(_copies, types)),
            default=field.default,
            group=None if group is None else group.__doc__,
        )
        found |= below
    return found


def _copies(values: inspect.Type) -> int:
    """Find `Setting.copies` for a type. A list of fractions is a range, which needs both ends."""
    if not isinstance(values, inspect.ListType) or isinstance(values.item_type, inspect.FloatType):
        return 0
    return values.min_length or 1


def _words(values: inspect.Type) -> str:
    """The values that a type allows, in words."""
    if isinstance(values, inspect.LiteralType):
        return f"{'one of ' if len(values.values) > 1 else ''}{', '.join(map(str, values.values))}"
    if isinstance(values, inspect.ListType):
        return f"a list of {_words(values.item_type).removeprefix('one of ')}"
    limits = {word: getattr(values, name, None) for name, word in LIMITS.items()}
    given = [f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None]
    return f"{TYPES[type(values)]} {' and '.join(given)}".rstrip()


def convert(settings: Mapping[str, Any], kind: type[T]) -> T:
    """Check settings against their declarations.

    Args:
        settings: as composed, interpolations resolved.
        kind: group of settings.

    Raises:
        CocosegError: names the key, its value and what is allowed.
    """
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)  # a copy
    _gather_arguments(values, declarations(kind))
    typed: dict[str, Any] = {}  # single values that a list has replaced, for messages
    while True:
        try:
            return msgspec.convert(
                values, kind, strict=False, dec_hook=lambda _, value: parse_duration(value, key="")
            )
        except msgspec.ValidationError as error:
            message = str(error)
        path = re.search(r"`\$\.?([\w.]*)[^`]*`$", message)
        key = path[1] if path else ""
        unknown = re.match(r"Object contains unknown field `([^`]*)`", message)
        if unknown and not (path and "[" in path[0]):  # the whole list is shown, not its entry
            raise CocosegError(unknown_key(f"{key}.{unknown[1]}".removeprefix("."), kind))
        if not key:
            raise CocosegError(f"settings: {message}")  # a number in place of a name
        *groups, name = key.split(".")
        group, setting = reduce(getitem, groups, values), declarations(kind)[key]
        value = typed.get(key, group[name])
        if inspect.StrType in setting.types and type(value) in (int, float):
            group[name] = str(value)  # YAML reads run_dir=2026 as a number
        elif setting.copies and key not in typed and type(value) in (int, str):
            typed[key], group[name] = value, [value] * setting.copies
        else:
            if inspect.CustomType in setting.types:
                parse_duration(value, key=key)  # its own sentence says more
            quoted = repr(value) if isinstance(value, str) else shown(value)
            raise CocosegError(f"{key} is {quoted}; it must be {setting.allowed}")


def _gather_arguments(values: dict[str, Any], declared: Mapping[str, Setting]) -> None:
    """Make a group's `_target_` a node, and move the undeclared keys of the group into it.

    {_target_: my.Set, folder: a} becomes {_target_: {_target_: my.Set, folder: a}}.
    """
    for key in declared:
        name, _, last = key.rpartition(".")
        group = values.get(name) if last == "_target_" else None
        if isinstance(group, dict) and isinstance(group.get(last), str):
            extra = [argument for argument in group if f"{name}.{argument}" not in declared]
            group[last] = {last: group[last], **{argument: group.pop(argument) for argument in extra}}


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as nested dictionaries of numbers and text, as in YAML."""
    return msgspec.to_builtins(settings, enc_hook=str)


def shown(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def unknown_key(key: str, kind: type[Settings], others: Iterable[str] = ()) -> str:
    """Return the sentence about an undeclared key: what takes its place, or what may have been meant.

    Args:
        key: as in `data.bach_size`.
        kind: settings of the program.
        others: keys that are known besides those.
    """
    if key in REMOVED:
        return f"{key} is gone: {REMOVED[key]}"
    for argument, place in ELSEWHERE.items():
        if f"{key}.".startswith(f"{argument}."):
            return f"{argument} is set elsewhere: {place}"
    known = {*(other for other, setting in declarations(kind).items() if setting.group is None), *others}
    node, _, name = key.rpartition(".")
    alias = ALIASES.get(name)
    closest = alias if alias in known else max(sorted(known), key=lambda other: _similarity(key, other))
    if closest == alias or _similarity(key, closest) >= LEAST_SIMILARITY:
        return f"{key}: no such setting; did you mean {closest}?"
    beside = sorted(other for other in known if node and other.rpartition(".")[0] == node)
    hint = f"known: {', '.join(beside)}" if 0 < len(beside) <= MOST_LISTED else "--help lists all"
    return f"{key}: no such setting; {hint}"


def _similarity(key: str, other: str) -> float:
    """Similarity of two keys in 0 … 1: the mean of that of the whole keys and that of their last names."""
    names = key.rpartition(".")[2], other.rpartition(".")[2]
    return (SequenceMatcher(None, key, other).ratio() + SequenceMatcher(None, *names).ratio()) / 2


def parameters_of(target: str, key: str) -> Mapping[str, Parameter]:
    """Return the parameters of a `_target_`, or raise CocosegError where it can't be imported and called."""
    try:
        return signature(pkgutil.resolve_name(target)).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise CocosegError(
            f"{key}: {target} can't be imported and called ({error}); your own modules must be on PYTHONPATH"
        ) from error


def require_argument(name: str, target: str, key: str) -> None:
    """Raise CocosegError where a target has no argument of a name."""
    known = list(parameters_of(target, key))
    if name not in known:
        close = get_close_matches(name, known, n=1)
        listed = textwrap.shorten(", ".join(known) or "none", 80, placeholder="…")
        hint = f"did you mean {key}.{close[0]}?" if close else f"it takes {listed}"
        raise CocosegError(f"{key}.{name}: {target} has no such argument; {hint}")


def drop_removed(values: dict[str, Any]) -> list[str]:
    """Remove the keys that are gone from settings that an earlier version wrote, and return them."""
    dropped: list[str] = []
    for key in sorted(REMOVED):
        *groups, name = key.split(".")
        with suppress(KeyError, TypeError):
            del reduce(getitem, groups, values)[name]
            dropped.append(key)
    return dropped
