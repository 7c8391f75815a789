"""Class indices of a model translated to those of data with other labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CocosegError
from cocoseg.labels import LabelMap

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matching:
    """Translation of the model's class indices to the data's.

    Classes of the data that the model lacks are never predicted, so all their pixels count as errors. Classes
    of the model that the data lack count as background, as everything does in these data that is none of
    their classes.

    Attributes:
        index: the data's class index of each of the model's, (256,) uint8.
        never_predicted: names of the data's classes that the model lacks.
        as_background: names of the model's classes that the data lack.
    """

    index: np.ndarray
    is_same: bool = True
    never_predicted: Sequence[str] = ()
    as_background: Sequence[str] = ()

    def __call__(self, prediction: np.ndarray) -> np.ndarray:
        """Class indices (H, W) uint8 of the model as those of the data."""
        return prediction if self.is_same else self.index[prediction]


def match_labels(model: LabelMap, data: LabelMap, rule: str) -> Matching:
    """Match a model's labels to the data's, with a warning of classes that either of them lacks.

    Args:
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
    theirs, ours = _index_by_name(model, "the model"), _index_by_name(data, "the data")
    common = theirs.keys() & ours.keys()
    if not common:
        raise CocosegError(
            f"labels=match: none of the model's classes ({_first_names(model)}) has the name of one of the "
            f"data's ({_first_names(data)})"
        )
    index[: len(model)] = 0
    for name in common:
        index[theirs[name]] = ours[name]
    never_predicted = [data.names[ours[name]] for name in ours if name not in common]
    if never_predicted:
        names = ", ".join(never_predicted)
        log.warning("warning: the model has no class for %s: their pixels count as errors", names)
    as_background = [model.names[theirs[name]] for name in theirs if name not in common]
    if as_background:
        names = ", ".join(as_background)
        log.warning("warning: these data have no class for %s: predicted, they count as background", names)
    return Matching(index, False, never_predicted, as_background)


def _index_by_name(labels: LabelMap, owner: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for index, name in enumerate(labels.names[1:], start=1):
        key = " ".join(name.split()).casefold()
        if key in found:
            raise CocosegError(f"labels=match: {owner} has two classes of the name {name!r}")
        found[key] = index
    return found


def _first_names(labels: LabelMap) -> str:
    return ", ".join(labels.names[1:6]) + ", …" * (len(labels) > 6)
