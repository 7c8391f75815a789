"""The work of predict.py from top to bottom: find the images, predict the new ones, write the results."""

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from cocoseg.config import AUTO, PredictConfig
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.figures.gallery import Card, write_gallery
from cocoseg.files import from_here, remove_parts
from cocoseg.inference.coco_results import entries_of, image_ids, write_results
from cocoseg.inference.find_images import ImageFile, find_images, is_utf8
from cocoseg.inference.manifest import Entry, Manifest
from cocoseg.inference.model import load_model
from cocoseg.inference.pipeline import MASKS, OVERLAYS, Pipeline, ResultPaths
from cocoseg.inference.predictor import Predictor
from cocoseg.networks.device import resolve_precision, to_channels_last
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.progress import track
from cocoseg.workers import available_cores, sigterm_as_exit

log = logging.getLogger(__name__)

PAGE, RESULTS = "gallery.html", "coco_results.json"
SAVE_EVERY = 5.0  # seconds between writes of the manifest: the work that a kill loses
PIXEL = {"category_id": "category_id", "index": "class_index"}  # `values` -> `pixel` of labels.json
DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def plan_folder(config: PredictConfig, output: Path) -> tuple[list[ImageFile], Manifest]:
    """Find the images, sorted by name, and read the output folder's manifest. Writes nothing.

    Raises:
        CocosegError: there is no image or no such device, two images would have the same results, or the
            output holds predictions of another model or other settings.
    """
    _, precision = resolve_device(config.accelerator, config.precision)
    images = find_images(config.input, output)
    with Path(config.checkpoint).open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    # Settings that the masks depend on.
    settings = {name: getattr(config, name) for name in ("scale", "tile", "flip", "values")}
    manifest = Manifest(output, model, {**settings, "precision": precision})
    manifest.require_distinct_results(images)
    return images, manifest


def predict_folder(config: PredictConfig, output: Path, found: list[ImageFile], manifest: Manifest) -> None:
    """Predict, write, and log what was done.

    Args:
        config: the settings.
        output: folder of the results.
        found, manifest: as `plan_folder` returns them.

    Raises:
        CocosegError: nothing can be done at all.
        IncompleteError: some images are left out.
    """
    start = time.monotonic()
    # Pillow warns of large images, which image_files.py limits itself, and of odd metadata.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module="PIL")
    images = _with_utf8_names(found, output)
    known = coco.read(Path(config.annotations)).images if config.annotations else None
    predictor = _load_predictor(config)
    encoding = MaskEncoding("palette", predictor.model.labels, PIXEL[config.values])
    if encoding.pixel != PIXEL[config.values]:
        log.warning("masks hold class indices, because category ids don't fit; see labels.json")

    paths = ResultPaths(output, config.overlay, config.gallery)
    workers = config.workers or max(2, available_cores())
    pipeline = Pipeline(predictor, encoding, paths, batch_size=config.batch_size, workers=workers)
    with sigterm_as_exit():
        _clear_folders(paths)
        encoding.save(output)
        old = {image for image in images if manifest.is_done(image) and paths.exist(image.result_name)}
        failed = _predict(pipeline, [image for image in images if image not in old], manifest)
        done = [image for image in images if image not in failed]
        if config.coco_json:
            ids = image_ids([image.name for image in found], known)
            listed = [image for image in done if image.name in ids]
            if missing := len(done) - len(listed):
                log.warning("%s does not list %d of the images", config.annotations, missing)
            _write_results(listed, ids, encoding, paths, workers)
        if config.gallery:
            _write_gallery(config, done, manifest, encoding, paths)
    new, seconds = len(done) - len(old), time.monotonic() - start
    log.info("predicted    %d of %d images in %.1f s", new, len(found), seconds)
    if old:
        log.info("skipped      %d that exist already", len(old))
    _log_paths(config, paths, encoding)
    if left_out := len(found) - len(done):
        raise IncompleteError(f"{left_out} of {len(found)} images are left out, as listed above")


def resolve_device(accelerator: str, precision: str) -> tuple[torch.device, str]:
    """Resolve `auto` to the device and the precision to use.

    Raises:
        CocosegError: there is no such device.
    """
    present = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == AUTO:
        accelerator = next(name for name, is_present in present.items() if is_present)
    if not present[accelerator]:
        raise CocosegError(f"accelerator: there is no {accelerator} here")
    precision = resolve_precision({"accelerator": accelerator, "precision": precision})["precision"]
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator)), precision


def _load_predictor(config: PredictConfig) -> Predictor:
    device, precision = resolve_device(config.accelerator, config.precision)
    model = load_model(config.checkpoint, config.network)
    return Predictor(
        to_channels_last(model.to(device)),
        scale=config.scale,
        tile=config.tile,
        flip=config.flip,
        autocast=DTYPES[precision],
    )


def _with_utf8_names(found: Sequence[ImageFile], output: Path) -> list[ImageFile]:
    """Leave out, with a warning, the images that manifest and gallery can't name."""
    images = []
    for image in found:
        if is_utf8(image, output):
            images.append(image)
        else:
            shown = os.fsencode(image.path).decode(errors="backslashreplace")
            log.warning("left out: %s: its name is not UTF-8; rename it", shown)
    return images


def _clear_folders(paths: ResultPaths) -> None:
    """Make the folders of the results, without the unfinished files that a killed process left there.

    Once they exist, a single result that can't be written is due to its own name.
    """
    for folder in paths.folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CocosegError(f"{folder}: can't be written ({error.strerror})") from error
        for below in folder.glob("**/"):
            remove_parts(below)


def _predict(pipeline: Pipeline, images: Sequence[ImageFile], manifest: Manifest) -> set[ImageFile]:
    """Predict and keep the manifest up to date. Returns the images that are left out."""
    failed: set[ImageFile] = set()
    saved = time.monotonic()
    try:
        with closing(pipeline.run(images)) as outcomes:
            for image, outcome in track(outcomes, total=len(images), what="images"):
                if isinstance(outcome, Entry):
                    manifest.add(outcome)
                else:
                    failed.add(image)
                    log.warning("left out: %s", outcome)
                if time.monotonic() - saved > SAVE_EVERY:
                    manifest.write()
                    saved = time.monotonic()
    finally:
        manifest.write()
    return failed


def _write_results(
    images: Sequence[ImageFile],
    ids: dict[str, int],
    encoding: MaskEncoding,
    paths: ResultPaths,
    workers: int,
) -> None:
    """Write COCO results of images whose masks exist."""

    def entries(image: ImageFile) -> list[dict[str, Any]]:
        mask = encoding.read(paths.mask(image.result_name))
        return entries_of(mask, ids[image.name], image.name, encoding.labels)

    with ThreadPoolExecutor(workers) as pool:
        # 64 images at a time: not all are in memory.
        parts = (images[start : start + 64] for start in range(0, len(images), 64))
        write_results(paths.output / RESULTS, (one for part in parts for one in pool.map(entries, part)))


def _write_gallery(
    config: PredictConfig,
    images: Sequence[ImageFile],
    manifest: Manifest,
    encoding: MaskEncoding,
    paths: ResultPaths,
) -> None:
    cards = []
    for image in images:
        entry = manifest.entries[image.result_name]
        cards.append(Card(image.name, entry.name, (entry.height, entry.width), entry.pixels))
    about = f"{len(cards)} images by {from_here(config.checkpoint)}"
    write_gallery(paths.output / PAGE, cards, encoding.labels, "Predictions", about)


def _log_paths(config: PredictConfig, paths: ResultPaths, encoding: MaskEncoding) -> None:
    pixel = encoding.pixel.replace("_", " ")
    log.info("masks        %s (pixel: %s)", from_here(paths.output / MASKS), pixel)
    for is_wanted, what, name in (
        (config.overlay, "overlays", OVERLAYS),
        (config.coco_json, "results", RESULTS),
        (config.gallery, "to look at", PAGE),
    ):
        if is_wanted:
            log.info("%-12s %s", what, from_here(paths.output / name))
