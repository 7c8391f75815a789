"""Missing images: the error that says where they seem to be, or what to do."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec

from cocoseg.errors import CocosegError, count_of
from cocoseg.images.image_files import has_content
from cocoseg.images.similar_names import find_similar
from cocoseg.preparation.coco_file import CocoFile, Image

log = logging.getLogger(__name__)


def require_images(
    chosen: Sequence[Image],
    images: Sequence[Image],
    image_dir: Path,
    key: str = "image_dir",
    option: str = "file_names='similar'",
    fetching: str | None = None,
) -> None:
    """Check that the files of chosen images exist; damaged ones are found when masks are drawn.

    Args:
        images: all images of the annotation file.
        key: name of the setting that gives the folder.
        option: setting that reads images under similar names.
        fetching: advice on how to fetch the images; None where nothing gives their addresses.

    Raises:
        CocosegError: some are missing.
    """
    missing = _missing(chosen, image_dir)
    if not missing:
        return
    found = find_similar(missing, (image.file_name for image in images), image_dir)
    if folder := _better_folder(chosen, image_dir, found):
        advice = f"they are in {folder}: set {key}={folder}"
    elif found:
        some = f"for {len(found)} of them " if len(found) < len(missing) else ""
        advice = f"{some}files of similar names are there, {image_dir / next(iter(found.values()))} for one"
        advice += "" if some else f": {option} reads them"
    else:
        advice = fetching or f"set {key} to the folder that holds them"
    names = ", ".join(_place(image_dir / name) for name in missing[:3]) + ", …" * (len(missing) > 3)
    raise CocosegError(f"{len(missing)} of {len(chosen)} chosen images are missing, {names}; {advice}")


def require_pngs(coco: CocoFile, images: Sequence[Image]) -> None:
    """Raise CocosegError where images of a panoptic file have no PNG."""
    pngs = [coco.pngs[image.id] for image in images if image.id in coco.pngs] if coco.pngs else []
    if missing := [png for png in pngs if not has_content(png)]:
        names = ", ".join(map(_place, missing[:3])) + ", …" * (len(missing) > 3)
        raise CocosegError(
            f"{len(missing)} of {len(pngs)} PNGs of the chosen images are missing, {names}; those "
            "of a panoptic file lie in a folder of its name, beside it or one level up"
        )


def under_similar_names(chosen: Sequence[Image], images: Sequence[Image], image_dir: Path) -> list[Image]:
    """Return the chosen images; those without a file get the name of a similar file, where there is one."""
    missing = _missing(chosen, image_dir)
    found = find_similar(missing, (image.file_name for image in images), image_dir) if missing else {}
    for name, file in [*found.items()][:1]:
        log.info("%s under similar names: %s is read as %s, …", count_of(len(found), "image"), name, file)
    renamed = (found.get(image.file_name, image.file_name) for image in chosen)
    return [msgspec.structs.replace(i, file_name=name) for i, name in zip(chosen, renamed, strict=True)]


def _missing(chosen: Sequence[Image], image_dir: Path) -> list[str]:
    return [image.file_name for image in chosen if not has_content(image_dir / image.file_name)]


def _place(path: Path) -> str:
    """The path, and the reason why the file counts as missing though something is there."""
    with suppress(OSError):  # the name may be too long
        if path.is_file():
            return f"{path} (an empty file)"
        if path.is_symlink():
            return f"{path} (a link to nothing)"
    return str(path)


def _better_folder(chosen: Sequence[Image], image_dir: Path, found: Mapping[str, str]) -> Path | None:
    """A folder above or below the given one that holds all these images under their own names."""
    depth = len(PurePosixPath(chosen[0].file_name).parts)
    folders = list(image_dir.parents)[:depth]
    name, file = next(iter(found.items()), ("", ""))
    if file.endswith(f"/{name}"):
        folders.append(image_dir / file.removesuffix(f"/{name}"))
    return next((f for f in folders if all(has_content(f / image.file_name) for image in chosen)), None)
