"""Which images a model was trained on: its run notes them, an evaluation looks for them. No torch."""

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, write_json

log = logging.getLogger(__name__)

FILE = "training_images.json"

Key = tuple[str, int]  # file_name as the annotations list it, and the bytes of the file


class _Content(msgspec.Struct):
    images: list[Key]


def keys_of(folder: Path, names: Iterable[str]) -> list[Key]:
    """What tells images apart, also where a name such as `0001.jpg` is in many data sets.

    Content is not read: it would take as long as decoding.
    """
    return [(name, (folder / name).stat().st_size) for name in names]


def note(run_dir: Path, images: Iterable[Key], earlier: Iterable[str | None] = ()) -> None:
    """Write the images that a run trains on, and those of the models that it goes on from.

    Args:
        earlier: files of these models; those that don't lie in a run's folder add nothing.
    """
    seen = set(images)
    for checkpoint in earlier:
        if isinstance(checkpoint, str) and Path(checkpoint).is_file():
            seen |= noted(checkpoint) or set()
    write_json(run_dir / FILE, {"images": sorted(seen)})


def noted(checkpoint: str) -> set[Key] | None:
    """The images that the model was trained on, or None where its run left no word.

    Raises:
        CocosegError: the file is damaged.
    """
    folder = Path(checkpoint).parent
    path = next((p for p in (folder / FILE, folder.parent / FILE) if p.is_file()), None)
    if path is None:
        return None
    try:
        return set(msgspec.json.decode(path.read_bytes(), type=_Content).images)
    except (OSError, msgspec.MsgspecError) as error:
        raise CocosegError(f"{from_here(path)}: damaged ({error}); delete it to go without") from error


def require_new(images: Sequence[Key], trained: Collection[Key], split: str) -> None:
    """Refuse to call validation images what the model was trained on; of other splits say it.

    Raises:
        CocosegError: `split` is val, and some of the images were trained on.
    """
    known = [name for name, size in images if (name, size) in trained]
    if not known:
        return
    said = f"the model was trained on {len(known)} of these {len(images)} images, {known[0]} for one"
    if split == "val":
        raise CocosegError(
            f"split=val: {said}; leave seed and data as its training had them, give other data, "
            "or take split=all, where this is a warning"
        )
    log.warning("warning: %s: what it scores there says little about new ones", said)
