"""Images that are missing: where they seem to be instead, and what to do."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec

from cocoseg.config_cross_checks import how_to_fetch
from cocoseg.errors import CocosegError
from cocoseg.images.image_files import has_content
from cocoseg.images.similar_names import find_similar
from cocoseg.preparation.coco_file import CocoFile, Image
from cocoseg.preparation.prepared_folder import EXTRA, PreparedSet

log = logging.getLogger(__name__)


def require_prepared_images(prepared: PreparedSet, chosen: Sequence[Image], images: Sequence[Image]) -> None:
    """Check that the images of a set are there, see `require_images`."""
    data = prepared.data
    key = "data.val_images" if prepared.name == "val" and data.val_images is not None else "data.images"
    key = "images of data.extra" if prepared.name == EXTRA else key
    has_address = data.images_url is not None or any(image.coco_url for image in chosen)
    advice = how_to_fetch(data) if has_address else None
    require_images(chosen, images, prepared.image_dir, key, "data.file_names=similar", advice)


def require_images(
    chosen: Sequence[Image],
    images: Sequence[Image],
    image_dir: Path,
    key: str = "image_dir",
    option: str = "file_names='similar'",
    fetching: str | None = None,
) -> None:
    """Check that images are there; broken ones are found when masks are drawn.

    Args:
        images: all images of the annotation file.
        key: name of the setting that gives the folder.
        option: setting that reads images under similar names.
        fetching: advice for images with an address, where they can be fetched.

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
    """Raises CocosegError where images of a panoptic file lack their PNG."""
    pngs = [coco.pngs[image.id] for image in images if image.id in coco.pngs] if coco.pngs else []
    if missing := [png for png in pngs if not has_content(png)]:
        names = ", ".join(map(_place, missing[:3])) + ", …" * (len(missing) > 3)
        raise CocosegError(
            f"{len(missing)} of {len(pngs)} PNGs of the chosen images are missing, {names}; those "
            "of a panoptic file lie in a folder of its name, beside it or one level up"
        )


def under_similar_names(chosen: Sequence[Image], images: Sequence[Image], image_dir: Path) -> list[Image]:
    """Images as they are, but those without a file under the names of similar files."""
    missing = _missing(chosen, image_dir)
    found = find_similar(missing, (image.file_name for image in images), image_dir) if missing else {}
    for name, file in [*found.items()][:1]:
        log.info("%d images are read under similar names: %s as %s, …", len(found), name, file)
    renamed = (found.get(image.file_name, image.file_name) for image in chosen)
    return [msgspec.structs.replace(i, file_name=name) for i, name in zip(chosen, renamed, strict=True)]


def _missing(chosen: Sequence[Image], image_dir: Path) -> list[str]:
    return [image.file_name for image in chosen if not has_content(image_dir / image.file_name)]


def _place(path: Path) -> str:
    """The path, and why the file counts as missing though something is there."""
    with suppress(OSError):  # the name may be too long
        if path.is_file():
            return f"{path} (an empty file)"
        if path.is_symlink():
            return f"{path} (a link to nothing)"
    return str(path)


def _better_folder(chosen: Sequence[Image], image_dir: Path, found: Mapping[str, str]) -> Path | None:
    """A folder that holds all these images under the names that they have, above or below the given one."""
    depth = len(PurePosixPath(chosen[0].file_name).parts)
    folders = list(image_dir.parents)[:depth]
    name, file = next(iter(found.items()), ("", ""))
    if file.endswith(f"/{name}"):
        folders.append(image_dir / file.removesuffix(f"/{name}"))
    return next((f for f in folders if all(has_content(f / image.file_name) for image in chosen)), None)
