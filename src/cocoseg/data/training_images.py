"""List of the images that a model was trained on: its run writes it, an evaluation reads it. No torch."""

import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from cocoseg.errors import CocosegError
from cocoseg.files import from_here, read_json, write_json

log = logging.getLogger(__name__)

FILE = "training_images.json"

Key = tuple[str, int]  # file_name as the annotations list it, and the number of bytes of the file


def keys_of(folder: Path, names: Iterable[str]) -> list[Key]:
    """Name and number of bytes of each file: the number tells apart the `0001.jpg` of several data sets.

    The content is not read, because that would take as long as decoding.
    """
    return [(name, (folder / name).stat().st_size) for name in names]


def write_training_images(run_dir: Path, images: Iterable[Key], earlier: Iterable[str | None] = ()) -> None:
    """Write the images that a run trains on, and those that the model files `earlier` were trained on."""
    seen = set(images)
    for checkpoint in earlier:
        if isinstance(checkpoint, str) and Path(checkpoint).is_file():
            seen |= read_training_images(checkpoint) or set()
    write_json(run_dir / FILE, {"images": sorted(seen)})


def read_training_images(checkpoint: str) -> set[Key] | None:
    """Read the images that a model was trained on; None without a list. Raise CocosegError if damaged."""
    folder = Path(checkpoint).parent
    path = next((p for p in (folder / FILE, folder.parent / FILE) if p.is_file()), None)
    if path is None:
        return None
    try:
        return set(read_json(path, dict[str, list[Key]])["images"])
    except (OSError, ValueError, KeyError) as error:
        raise CocosegError(f"{from_here(path)}: damaged ({error}); delete it to do without it") from error


def require_new(images: Sequence[Key], trained: Collection[Key] | None, split: str) -> None:
    """Raise CocosegError for validation images that the model was trained on. In other splits warn of them.

    Args:
        images: the images to score.
        trained: images that the model was trained on. None where they are not known: then only warn.
    """
    if trained is None:
        log.warning("warning: no %s beside the model: it may have been trained on these images", FILE)
        return
    known = [name for name, size in images if (name, size) in trained]
    if not known:
        return
    message = f"the model was trained on {len(known)} of these {len(images)} images, {known[0]} for one"
    if split == "val":
        raise CocosegError(
            f"split=val: {message}; leave seed and data as its training had them, give other data, "
            "or give split=all, which only warns"
        )
    log.warning("warning: %s: its scores there say little about new images", message)
