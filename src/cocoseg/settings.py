"""Checks a composed configuration against the declarations of config.py, and names what is wrong with a key.

No torch, no Hydra.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from cocoseg.config import Settings
from cocoseg.durations import Duration, parse_duration
from cocoseg.errors import CocosegError

ALIKE = 0.7  # keys from which one is suggested for the other

T = TypeVar("T", bound=Settings)

# Keys of earlier versions: what takes their place.
REMOVED = {
    "ema": "average the weights by +callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging",
    "data.sampling": "loss.class_weights=enet gives rare classes their weight",
    "augment.rare_crop": "loss.class_weights=enet gives rare classes their weight",
    "augment.start_strength": "augmentation has the same strength all through the run; leave it out",
    "augment.end_strength": "augmentation has the same strength all through the run; leave it out",
    "model.deep_supervision": "only the finest logits are trained; leave it out",
    "sweep.storage": "one process leads a sweep; use many machines by hydra/launcher=submitit_slurm",
    "sweep.prune": "choose sweep.pruner=none, median, halving or hyperband",
    "sweep.factor": "choose sweep.pruner=halving, which has a factor of 3",
}
REMOVED_VALUES = {
    "compile=auto": "choose compile=true or compile=false",
    "sweep=halving": "choose sweep=tpe sweep.pruner=halving",
}


def convert(values: Mapping[str, Any], kind: type[T], prefix: str = "") -> T:
    """Check settings against their declarations.

    Args:
        values: as composed, interpolations resolved.
        kind: group of settings.
        prefix: of its keys in errors, as in `masks.`.

    Raises:
        CocosegError: names the key, its value and what is allowed.
    """
    values = msgspec.to_builtins(values, enc_hook=str)  # a copy
    while True:
        try:
            return msgspec.convert(values, kind, strict=False, dec_hook=_duration)
        except msgspec.ValidationError as error:
            key, unknown = _place(str(error))
            if unknown is not None:
                path = f"{key}.{unknown}" if key else unknown
                raise CocosegError(prefix + unknown_key(path, kind)) from None
            value, setting = _value(values, key), declarations(kind)[key]
            if setting.is_text and isinstance(value, int | float) and not isinstance(value, bool):
                parent, _, name = key.rpartition(".")
                _value(values, parent)[name] = str(value)  # YAML reads run_dir=2026 as a number
                continue
            raise CocosegError(_refusal(prefix + key, value, setting)) from None


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as nested dictionaries of numbers and text, as in YAML."""
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    return values


@dataclass(frozen=True)
class Setting:
    """A declaration as config.py writes it, taken apart.

    Attributes:
        alternatives: members of its union, each with the ranges that are its own.
        notes: description, words for what is allowed and for the default.
    """

    alternatives: tuple[tuple[Any, tuple[msgspec.Meta, ...]], ...]
    notes: tuple[msgspec.Meta, ...]

    @property
    def description(self) -> str:
        """The one line of help."""
        return next((note.description for note in self.notes if note.description), "")

    @property
    def allowed(self) -> str:
        """The values that it takes, in words: `one of max, smallest, ignore`, `a number in 0 … 1`."""
        words = self.note("allowed")
        if words is not None:
            return words
        parts = [word for one, ranges in self.alternatives for word in _words(one, ranges)]
        if get_origin(self.alternatives[0][0]) is Literal and len(self.alternatives) == 1:
            return f"one of {', '.join(parts)}"
        last = ", or " if any(" " in part for part in parts) else " or "
        return last.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]

    @property
    def group(self) -> type[Settings] | None:
        """The group of settings that it is, or None for a single setting."""
        return next(
            (one for one in self._types() if isinstance(one, type) and issubclass(one, Settings)), None
        )

    @property
    def is_node(self) -> bool:
        """Whether it holds undeclared keys: a `_target_` and its arguments, or names of a user."""
        return any(get_origin(one) is dict for one in self._types())

    @property
    def is_duration(self) -> bool:
        return Duration in self._types()

    @property
    def is_text(self) -> bool:
        return str in self._types()

    @property
    def choices(self) -> str:
        """Its choices, where it has nothing else: `max, smallest, ignore`."""
        if {get_origin(one) or one for one in self._types()} - {Literal, type(None)}:
            return ""
        return ", ".join(word for one, _ in self.alternatives for word in _words(one, ()))

    def note(self, name: str) -> str | None:
        """What config.py says in words of `allowed` or `default`."""
        return next((note.extra[name] for note in self.notes if name in (note.extra or {})), None)

    def _types(self) -> list[Any]:
        return [one for one, _ in self.alternatives]


@cache
def declarations(kind: type[Settings]) -> dict[str, Setting]:
    """All settings of a group, those of its own groups too: `data.subset.size` -> its declaration."""
    found: dict[str, Setting] = {}
    for one in msgspec.structs.fields(kind):
        found[one.name] = setting = Setting(tuple(_flat(one.type)), _metas(one.type))
        if setting.group is not None:
            found |= {f"{one.name}.{key}": inner for key, inner in declarations(setting.group).items()}
    return found


def shown(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def unknown_key(key: str, kind: type[Settings], groups: Iterable[str] = ()) -> str:
    """The sentence about an undeclared key: what takes its place, or what may have been meant."""
    if key in REMOVED:
        return f"{key} is gone: {REMOVED[key]}"
    known = [other for other, setting in declarations(kind).items() if setting.group is None]
    likeness = {other: _likeness(key, other) for other in (*known, *groups)}
    closest = max(likeness, key=lambda other: sum(likeness[other]))
    hint = f"did you mean {closest}?" if max(likeness[closest]) >= ALIKE else "--help lists all"
    return f"{key}: no such setting; {hint}"


def _likeness(key: str, other: str) -> tuple[float, float]:
    """How alike two keys are, in 0 … 1: as a whole, and by their last names."""
    names = key.rpartition(".")[2], other.rpartition(".")[2]
    return SequenceMatcher(None, key, other).ratio(), SequenceMatcher(None, *names).ratio()


def drop_removed(values: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Settings that an earlier version wrote, without the keys that are gone.

    Returns:
        the settings that are left, and the keys that were dropped.
    """
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in REMOVED:
            dropped.append(key)
        elif isinstance(value, Mapping):
            kept[name], more = drop_removed(value, f"{key}.")
            dropped += more
        else:
            kept[name] = value
    return kept, dropped


def _duration(kind: type, value: Any) -> Duration:
    duration = parse_duration(value, key="") if kind is Duration else None
    if duration is None:
        raise ValueError(value)
    return duration


def _place(message: str) -> tuple[str, str | None]:
    """The key that msgspec's message is about, and the name that is not declared in it."""
    path = re.search(r"`\$\.?([^`]*)`$", message)
    key = re.sub(r"\[.*", "", path[1]) if path else ""
    unknown = re.match(r"Object contains unknown field `([^`]*)`", message)
    return key, unknown[1] if unknown else None


def _refusal(key: str, value: Any, setting: Setting) -> str:
    if setting.is_duration and value is not None:
        parse_duration(value, key=key)  # its own sentence says more
    quoted = repr(value) if isinstance(value, str) else shown(value)
    return f"{key} is {quoted}; it must be {setting.allowed}"


def _value(values: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        values = values.get(name)
    return values


def _flat(kind: Any) -> Iterator[tuple[Any, tuple[msgspec.Meta, ...]]]:
    """The members of a union, each with its annotations; of a type that is no union, itself."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(bare) in (Union, UnionType):
        for one in get_args(bare):
            yield from _flat(one)
    else:
        yield bare, _metas(kind)


def _metas(kind: Any) -> tuple[msgspec.Meta, ...]:
    return tuple(get_args(kind)[1:]) if get_origin(kind) is Annotated else ()


def _words(kind: Any, ranges: Iterable[msgspec.Meta]) -> list[str]:
    """The values of one alternative, in words."""
    if get_origin(kind) is Literal:
        return [shown(value) for value in get_args(kind)]
    if get_origin(kind) is list:
        (item,) = _flat(get_args(kind)[0])
        return [f"a list of {', '.join(_words(*item))}"]
    if get_origin(kind) is dict:
        return ["a _target_ and its arguments"]
    words = {
        int: ["a whole number"],
        float: ["a number"],
        bool: ["true", "false"],
        str: ["text"],
        type(None): ["null"],
        Duration: ['days:hours:minutes:seconds in quotes, as in "00:06:00:00"'],
    }
    return [word + _range(ranges) for word in words.get(kind, ["a group of settings"])]


def _range(metas: Iterable[msgspec.Meta]) -> str:
    """` in 0 … 1`, ` at least 0 and below 1`, ` above 0`; nothing where every number is allowed."""
    bounds = {
        name: bound
        for meta in metas
        for name in ("ge", "gt", "le", "lt")
        if (bound := getattr(meta, name)) not in (None, math.inf)
    }
    if {"ge", "le"} <= bounds.keys():
        return f" in {bounds['ge']:g} … {bounds['le']:g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = [f"{words[name]} {bound:.10g}" for name, bound in bounds.items()]
    return f" {' and '.join(parts)}" if parts else ""
