"""The work of predict.py from top to bottom: find the images, predict the new ones, write the results."""

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from cocoseg.config import AUTO, PredictConfig
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.figures.gallery import Card, write_gallery
from cocoseg.files import from_here, remove_parts
from cocoseg.inference.coco_results import entries_of, image_ids, write_results
from cocoseg.inference.find_images import ImageFile, find_images, is_utf8, require_distinct_results
from cocoseg.inference.manifest import Entry, Manifest
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.pipeline import Pipeline, ResultPaths
from cocoseg.inference.predictor import Predictor
from cocoseg.networks.device import in_channels_last, settled
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.mask_files import MaskEncoding
from cocoseg.progress import track
from cocoseg.workers import available_cores, sigterm_as_exit

log = logging.getLogger(__name__)

PAGE, RESULTS = "gallery.html", "coco_results.json"
SAVE_EVERY = 5.0  # seconds between writes of the manifest: the work that a kill loses
PIXEL = {"category_id": "category_id", "index": "class_index"}  # `values` -> `pixel` of labels.json
DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Plan:
    """The images to predict, and what the output folder holds already.

    Attributes:
        found: all images of the input, sorted by name.
        images: those that can be predicted; the names of the others are not UTF-8.
        manifest: of the output folder.
    """

    found: list[ImageFile]
    images: list[ImageFile]
    manifest: Manifest


def plan_folder(config: PredictConfig, output: Path) -> Plan:
    """Find the images and read the output folder's manifest. Writes nothing.

    Raises:
        CocosegError: there is no image or no such device, two images would have the same results, or the
            output holds predictions of another model or other settings.
    """
    _, precision = resolve_device(config.accelerator, config.precision)
    found = find_images(config.input, output)
    require_distinct_results(found)
    manifest = Manifest(output, _hash(Path(config.checkpoint)), _relevant_settings(config, precision))
    images = [image for image in found if is_utf8(image, output)]
    manifest.require_free_names(images)
    return Plan(found, images, manifest)


def predict_folder(config: PredictConfig, output: Path, plan: Plan) -> None:
    """Predict, write, and log what was done.

    Raises:
        CocosegError: nothing can be done at all.
        IncompleteError: some images are left out.
    """
    start = time.monotonic()
    # Pillow warns of large images, which images.py limits itself, and of odd metadata.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module="PIL")
    _warn_of_names(plan)
    known = coco.read(Path(config.annotations)).images if config.annotations else None
    predictor = _load_predictor(config)
    encoding = MaskEncoding("palette", predictor.model.labels, PIXEL[config.values])
    if encoding.pixel != PIXEL[config.values]:
        log.warning("masks hold class indices, because category ids don't fit; see labels.json")

    paths = ResultPaths(output, config.overlay, config.gallery)
    workers = config.workers or max(2, available_cores())
    pipeline = Pipeline(predictor, encoding, paths, batch_size=config.batch_size, workers=workers)
    paths.make_folders()
    encoding.save(output)
    with sigterm_as_exit():
        for folder in paths.folders:
            for below in folder.glob("**/"):
                remove_parts(below)
        old = {i for i in plan.images if plan.manifest.is_done(i) and paths.exist(i.result_name)}
        failed = _predict(pipeline, [image for image in plan.images if image not in old], plan.manifest)
        done = [image for image in plan.images if image not in failed]
        if config.coco_json:
            ids = image_ids([image.name for image in plan.found], known)
            listed = [image for image in done if image.name in ids]
            _warn_of_unlisted(config, done, ids)
            _write_results(listed, ids, encoding, paths, workers)
        if config.gallery:
            _write_gallery(config, done, plan.manifest, encoding, paths)
    new, seconds = len(done) - len(old), time.monotonic() - start
    log.info("predicted    %d of %d images in %.1f s", new, len(plan.found), seconds)
    if old:
        log.info("skipped      %d that exist already", len(old))
    _log_paths(config, paths, encoding)
    if left_out := len(plan.found) - len(done):
        raise IncompleteError(f"{left_out} of {len(plan.found)} images are left out, as listed above")


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
    precision = settled({"accelerator": accelerator, "precision": precision})["precision"]
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator)), precision


def load(checkpoint: Path, network: str | None) -> SegmentationModel:
    """Load the model of a file; `network` is the dotted name of a custom class.

    A file never chooses what is imported: whoever types the command does.

    Raises:
        CocosegError: there is no such class, or the file can't be loaded.
    """
    return load_model(checkpoint, network)


def _load_predictor(config: PredictConfig) -> Predictor:
    device, precision = resolve_device(config.accelerator, config.precision)
    model = load(Path(config.checkpoint), config.network).to(device)
    return Predictor(
        in_channels_last(model),
        scale=config.scale,
        tile=config.tile,
        flip=config.flip,
        scales=config.scales,
        autocast=DTYPES[precision],
    )


def _warn_of_names(plan: Plan) -> None:
    """Report the images that manifest and gallery can't name."""
    for image in sorted({*plan.found} - {*plan.images}, key=lambda image: image.name):
        shown = os.fsencode(image.path).decode(errors="backslashreplace")
        log.warning("left out: %s: its name is not UTF-8; rename it", shown)


def _warn_of_unlisted(config: PredictConfig, images: Sequence[ImageFile], ids: dict[str, int]) -> None:
    """Report images that the annotation file does not list."""
    missing = [image.name for image in images if image.name not in ids]
    if missing:
        log.warning(
            "%s does not list %d of the images, such as %s", config.annotations, len(missing), missing[0]
        )


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
    log.info("masks        %s (pixel: %s)", from_here(paths.masks), encoding.pixel.replace("_", " "))
    for is_wanted, what, path in (
        (config.overlay, "overlays", paths.overlays),
        (config.coco_json, "results", paths.output / RESULTS),
        (config.gallery, "to look at", paths.output / PAGE),
    ):
        if is_wanted:
            log.info("%-12s %s", what, from_here(path))


def _relevant_settings(config: PredictConfig, precision: str) -> dict[str, Any]:
    """Settings that the masks depend on."""
    names = ("scale", "tile", "flip", "scales", "values")
    return {**{name: getattr(config, name) for name in names}, "precision": precision}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
