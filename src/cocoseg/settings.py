"""Checks a composed configuration against the declarations of config.py, and names what is wrong with a key.

No torch, no Hydra.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any, TypeVar

import msgspec

from cocoseg.config import Settings
from cocoseg.durations import Duration, parse_duration
from cocoseg.errors import CocosegError

ALIKE = 0.7  # least likeness of a known key that is suggested for an unknown one

T = TypeVar("T", bound=Settings)

# Keys of earlier versions: what takes their place.
REMOVED = {
    "ema": "average the weights by +callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging",
    "data.subset.stratify": "choose more images by data.subset.size",
    "data.sampling": "loss.class_weights=enet gives rare classes their weight",
    "augment.rare_crop": "loss.class_weights=enet gives rare classes their weight",
    "augment.start_strength": "augmentation has the same strength all through the run; leave it out",
    "augment.end_strength": "augmentation has the same strength all through the run; leave it out",
    "prepare.check_only": "prepare.py keeps no masks where an annotation is wrong; leave it out",
    "model.deep_supervision": "only the finest logits are trained; leave it out",
    "scales": "flip=true averages with the mirror image",
    "labels": "choose classes of the data by data.labels and data.subset.categories; the model has the same",
    "sweep.storage": "one process leads a sweep; use many machines by hydra/launcher=submitit_slurm",
    "sweep.prune": "choose sweep.pruner=none, median, halving or hyperband",
    "sweep.factor": "choose sweep.pruner=halving, which has a factor of 3",
}
REMOVED_VALUES = {
    "compile=auto": "choose compile=true or compile=false",
    "sweep=halving": "choose sweep=tpe sweep.pruner=halving",
}


@dataclass(frozen=True)
class Setting:
    """A declaration of config.py.

    Attributes:
        schema: as JSON Schema; `allowed` in it says in words what its types alone do not.
        group: description of the group of settings that it is, or None for a single setting.
    """

    schema: Mapping[str, Any]
    group: str | None = None

    @property
    def description(self) -> str:
        """The one line of help."""
        return str(self.schema.get("description", ""))

    @property
    def allowed(self) -> str:
        """The values that it takes, in words: `one of max, smallest`, `a number in 0 … 1`."""
        if "allowed" in self.schema:
            return str(self.schema["allowed"])
        parts = [word for one in self._alternatives() for word in _words(one)]
        if "enum" in self.schema:
            return f"one of {', '.join(parts)}"
        last = ", or " if any(" " in part for part in parts) else " or "
        return last.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]

    @property
    def is_node(self) -> bool:
        """Whether it holds undeclared keys: a `_target_` and its arguments, or names of a user."""
        return self.has("type", "object")

    def has(self, keyword: str, value: str) -> bool:
        """Whether one of its alternatives has this value for a keyword of JSON Schema."""
        return any(one.get(keyword) == value for one in self._alternatives())

    def _alternatives(self) -> list[Mapping[str, Any]]:
        return list(self.schema.get("anyOf", [self.schema]))


@cache
def declarations(kind: type[Settings]) -> dict[str, Setting]:
    """All settings of a group, those of its own groups too: `data.subset.size` -> its declaration."""
    _, structs = msgspec.json.schema_components([kind], schema_hook=_schema, ref_template="{name}")
    return dict(_declared(kind.__name__, structs))


def _declared(name: str, structs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Setting]]:
    for key, schema in structs[name]["properties"].items():
        group = next((one["$ref"] for one in schema.get("anyOf", [schema]) if "$ref" in one), None)
        yield f"{prefix}{key}", Setting(schema, structs[group]["description"] if group else None)
        if group:
            yield from _declared(group, structs, f"{prefix}{key}.")


def _schema(kind: type) -> dict[str, str]:
    """JSON Schema of the one type of ours."""
    if kind is not Duration:
        raise NotImplementedError(kind)
    return {"format": "duration"}


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
            key, unknown = _key_in(str(error))
            if unknown is not None:
                path = f"{key}.{unknown}" if key else unknown
                raise CocosegError(prefix + unknown_key(path, kind)) from None
            value, setting = _value(values, key), declarations(kind)[key]
            if setting.has("type", "string") and type(value) in (int, float):
                parent, _, name = key.rpartition(".")
                _value(values, parent)[name] = str(value)  # YAML reads run_dir=2026 as a number
                continue
            if setting.has("format", "duration") and value is not None:
                parse_duration(value, key=prefix + key)  # its own sentence says more
            quoted = repr(value) if isinstance(value, str) else shown(value)
            raise CocosegError(f"{prefix}{key} is {quoted}; it must be {setting.allowed}") from None


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as nested dictionaries of numbers and text, as in YAML."""
    values: dict[str, Any] = msgspec.to_builtins(settings, enc_hook=str)
    return values


def shown(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def unknown_key(key: str, kind: type[Settings], others: Iterable[str] = ()) -> str:
    """The sentence about an undeclared key: what takes its place, or what may have been meant.

    Args:
        key: as in `data.bach_size`.
        kind: settings of the program.
        others: keys that are known besides those.
    """
    if key in REMOVED:
        return f"{key} is gone: {REMOVED[key]}"
    known = [other for other, setting in declarations(kind).items() if setting.group is None]
    likeness = {other: _likeness(key, other) for other in (*known, *others)}
    closest = max(likeness, key=lambda other: sum(likeness[other]))
    hint = f"did you mean {closest}?" if max(likeness[closest]) >= ALIKE else "--help lists all"
    return f"{key}: no such setting; {hint}"


def _likeness(key: str, other: str) -> tuple[float, float]:
    """Likeness of two keys, in 0 … 1: as a whole, and by their last names."""
    names = key.rpartition(".")[2], other.rpartition(".")[2]
    return SequenceMatcher(None, key, other).ratio(), SequenceMatcher(None, *names).ratio()


def drop_removed(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Remove the keys that are gone from settings that an earlier version wrote, and return them."""
    dropped: list[str] = []
    for name, value in list(values.items()):
        key = f"{prefix}{name}"
        if key in REMOVED:
            del values[name]
            dropped.append(key)
        elif isinstance(value, dict):
            dropped += drop_removed(value, f"{key}.")
    return dropped


def _duration(kind: type, value: Any) -> Duration:
    duration = parse_duration(value, key="") if kind is Duration else None
    if duration is None:
        raise ValueError(value)
    return duration


def _key_in(message: str) -> tuple[str, str | None]:
    """The key that msgspec's message is about, and the name that is not declared in it."""
    path = re.search(r"`\$\.?([^`]*)`$", message)
    key = re.sub(r"\[.*", "", path[1]) if path else ""
    unknown = re.match(r"Object contains unknown field `([^`]*)`", message)
    return key, unknown[1] if unknown else None


def _value(values: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        values = values.get(name)
    return values


def _words(schema: Mapping[str, Any]) -> list[str]:
    """The values that a JSON Schema without alternatives allows, in words."""
    if "enum" in schema:
        return [shown(value) for value in schema["enum"]]
    if schema.get("format") == "duration":
        return ['days:hours:minutes:seconds in quotes, as in "00:06:00:00"']
    words = {
        "integer": ["a whole number"],
        "number": ["a number"],
        "boolean": ["true", "false"],
        "string": ["text"],
        "null": ["null"],
        "object": ["a _target_ and its arguments"],
    }
    if schema.get("type") == "array":
        return [f"a list of {', '.join(_words(schema['items']))}"]
    return [word + _range(schema) for word in words.get(schema.get("type", ""), ["a group of settings"])]


def _range(schema: Mapping[str, Any]) -> str:
    """` in 0 … 1`, ` at least 0 and below 1`, ` above 0`; nothing where every number is allowed."""
    if {"minimum", "maximum"} <= schema.keys():
        return f" in {schema['minimum']:g} … {schema['maximum']:g}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    parts = [f"{words[name]} {schema[name]:.10g}" for name in words if name in schema]
    return f" {' and '.join(parts)}" if parts else ""
