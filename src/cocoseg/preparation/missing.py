"""Images that are missing: where they seem to be instead, and what to do."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec

from cocoseg.config_cross_checks import how_to_fetch
from cocoseg.errors import CocosegError
from cocoseg.images.image_files import has_content
from cocoseg.images.similar_names import Similar, find_similar
from cocoseg.preparation.coco_file import Image
from cocoseg.preparation.prepared_folder import PreparedSet

log = logging.getLogger(__name__)


def require_prepared_images(prepared: PreparedSet, chosen: Sequence[Image], images: Sequence[Image]) -> None:
    """Check that the images of a set are there, see `require_images`."""
    data = prepared.data
    key = "data.val_images" if prepared.name == "val" and data.val_images is not None else "data.images"
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
        chosen: the images that are needed.
        images: all images of the annotation file.
        image_dir: their folder.
        key: name of the setting that gives the folder.
        option: setting that reads images under similar names.
        fetching: advice for images with an address, where they can be fetched.

    Raises:
        CocosegError: some are missing.
    """
    missing = [image for image in chosen if not has_content(image_dir / image.file_name)]
    if not missing:
        return
    found = _find_similar(chosen, images, image_dir)
    if folder := _better_folder(chosen, image_dir, found):
        advice = f"they are in {folder}: set {key}={folder}"
    elif found:
        advice = _name_similar(len(missing), image_dir, found, option)
    else:
        advice = fetching or f"set {key} to the folder that holds them"
    names = ", ".join(_place(image_dir / image.file_name) for image in missing[:3])
    more = ", …" if len(missing) > 3 else ""
    raise CocosegError(f"{len(missing)} of {len(chosen)} chosen images are missing, {names}{more}; {advice}")


def under_similar_names(chosen: Sequence[Image], images: Sequence[Image], image_dir: Path) -> list[Image]:
    """Images as they are, but those without a file under the names of similar files."""
    found = _find_similar(chosen, images, image_dir)
    for name, similar in [*found.items()][:1]:
        log.info("%d images are read under similar names: %s as %s, …", len(found), name, similar.name)
    return [
        msgspec.structs.replace(image, file_name=found[image.file_name].name)
        if image.file_name in found
        else image
        for image in chosen
    ]


def _find_similar(chosen: Sequence[Image], images: Sequence[Image], image_dir: Path) -> dict[str, Similar]:
    missing = [image.file_name for image in chosen if not has_content(image_dir / image.file_name)]
    listed = (image.file_name for image in images)
    return find_similar(missing, listed, image_dir) if missing else {}


def _place(path: Path) -> str:
    """The path, and why the file counts as missing though something is there."""
    with suppress(OSError):  # the name may be too long
        if path.is_file():
            return f"{path} (an empty file)"
        if path.is_symlink():
            return f"{path} (a link to nothing)"
    return str(path)


def _better_folder(chosen: Sequence[Image], image_dir: Path, found: Mapping[str, Similar]) -> Path | None:
    """A folder that holds all these images under the names that they have, above or below the given one."""

    def folders() -> Iterator[Path]:
        depth = len(PurePosixPath(chosen[0].file_name).parts)
        yield from list(image_dir.parents)[:depth]
        for name, similar in [*found.items()][:1]:
            if similar.name.endswith(f"/{name}"):
                yield image_dir / similar.name.removesuffix(f"/{name}")

    def holds_all(folder: Path) -> bool:
        return all(has_content(folder / image.file_name) for image in chosen)

    return next(filter(holds_all, folders()), None)


def _name_similar(missing: int, image_dir: Path, found: Mapping[str, Similar], option: str) -> str:
    """The first file of a similar name, in words, and whether all missing images have one."""
    name, differences = next(iter(found.values()))
    text = f"{image_dir / name} is there, different in {' and '.join(differences)}"
    same = [similar for similar in found.values() if similar.differences == differences]
    if len(same) == missing:
        return f"{text}{', and so are all others' if missing > 1 else ''}: {option} reads them so"
    return f"{text}; so are {len(same)} of the missing ones"
