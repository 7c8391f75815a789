"""Class indices of a model translated to those of data with other labels."""

from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap


@dataclass(frozen=True)
class Matching:
    """Translation of the model's class indices to the data's.

    Classes of the data that the model lacks are never predicted, so all their pixels count as errors. Classes
    of the model that the data lack count as background, as everything does in these data that is none of
    their classes.

    Attributes:
        index: the data's class index of each of the model's, (256,) uint8.
        is_same: the labels are the same.
        never_predicted: names of the data's classes that the model lacks.
        as_background: names of the model's classes that the data lack.
    """

    index: np.ndarray
    is_same: bool = True
    never_predicted: tuple[str, ...] = ()
    as_background: tuple[str, ...] = ()

    def __call__(self, prediction: np.ndarray) -> np.ndarray:
        """Class indices (H, W) uint8 of the model as those of the data."""
        return prediction if self.is_same else self.index[prediction]


def match_labels(model: LabelMap, data: LabelMap, rule: str) -> Matching:
    """Match a model's labels to the data's.

    Args:
        model, data: their labels.
        rule: `same` refuses any difference; `match` matches by name, capitals and blanks around it aside.

    Raises:
        CocosegError: labels differ under `same`; under `match` no name fits, or one occurs twice.
    """
    index = np.arange(256, dtype=np.uint8)
    difference = model.difference(data)
    if difference is None:
        return Matching(index)
    if rule == "same":
        raise CocosegError(
            f"the model has other labels than these data: {difference} in the data; "
            "labels=match matches them by name"
        )
    theirs, ours = _by_name(model, "the model"), _by_name(data, "the data")
    common = theirs.keys() & ours.keys()
    if not common:
        raise CocosegError(
            f"labels=match: none of the model's classes ({_listed(model)}) has the name of one of the data's "
            f"({_listed(data)})"
        )
    index[: len(model)] = 0
    for name in common:
        index[theirs[name]] = ours[name]
    return Matching(
        index,
        is_same=False,
        never_predicted=tuple(data.names[ours[name]] for name in ours if name not in common),
        as_background=tuple(model.names[theirs[name]] for name in theirs if name not in common),
    )


def _by_name(labels: LabelMap, whose: str) -> dict[str, int]:
    """Class index by name, background aside."""
    found: dict[str, int] = {}
    for index, name in enumerate(labels.names[1:], start=1):
        key = " ".join(name.split()).casefold()
        if key in found:
            raise CocosegError(f"labels=match: {whose} has two classes of the name {name!r}")
        found[key] = index
    return found


def _listed(labels: LabelMap) -> str:
    names = labels.names[1:6]
    return ", ".join(names) + ", …" * (len(labels) > 6)
