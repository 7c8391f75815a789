"""All steps of predict.py: find the images, predict the new ones, write the results."""

import hashlib
import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cocoseg.config import AUTO, PredictConfig
from cocoseg.config_cross_checks import check_checkpoint
from cocoseg.durations import now
from cocoseg.errors import CocosegError, IncompleteError, count_of
from cocoseg.figures.gallery import FOLDER, Card, write_gallery
from cocoseg.files import from_here, remove_parts
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.inference.coco_dataset import DATASET, write_coco_dataset
from cocoseg.inference.coco_results import listed_images, write_coco_results
from cocoseg.inference.find_images import ImageFile, find_images
from cocoseg.inference.manifest import Manifest
from cocoseg.inference.model import load_model
from cocoseg.inference.onnx_model import SUFFIX, OnnxModel, OnnxPredictor
from cocoseg.inference.pipeline import predict_images
from cocoseg.inference.predictor import Predictor
from cocoseg.inference.results import CONFIDENCE, MASKS, SUFFIXES, Results
from cocoseg.networks.device import explain_out_of_memory, resolve_precision
from cocoseg.preparation import coco_file as coco
from cocoseg.progress import track
from cocoseg.workers import available_cores, stop_in_order

log = logging.getLogger(__name__)

PAGE = "gallery.html"
SAVE_EVERY = 5.0  # seconds between writes of the manifest; a kill loses the work since the last write
PIXEL = {"category_id": "category_id", "index": "class_index"}  # `values` -> `pixel` of labels.json
DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@explain_out_of_memory("batch_size, scale or the sides of tile")
def predict_folder(config: PredictConfig, output: Path, *, begin: Callable[[], None] = lambda: None) -> None:
    """Predict the images that are new, write their results, and log what was done.

    Args:
        output: folder of the results.
        begin: called once all checks have passed, before anything is written.

    Raises:
        CocosegError: there is no image or no such device, two images would have the same results, or the
            output holds predictions of another model or other settings. Nothing is written then.
        IncompleteError: some images are left out.
    """
    start = now()
    # Pillow warns of odd metadata, and of large images long before it refuses them.
    warnings.filterwarnings("ignore", module="PIL")
    checkpoint = check_checkpoint(config.checkpoint)
    images = find_images(str(config.input), output)
    device, precision = choose_device(config, checkpoint)
    settings: dict[str, Any] = {"scale": config.scale, "tile": config.tile, "flip": config.flip}
    settings |= {"values": config.values, "precision": precision}
    manifest = Manifest(output, _sha256(Path(checkpoint)), settings)
    manifest.require_distinct_results(images)
    images, ids = _number(images, config.annotations)
    predictor = make_predictor(config, checkpoint, device, precision)  # after all checks that need no model
    labels = predictor.model.labels
    encoding = MaskEncoding("palette", labels, PIXEL[config.values])
    results = Results(output, encoding, config.overlay, config.gallery, config.confidence)
    begin()

    with stop_in_order(signal.SIGINT, signal.SIGTERM):
        encoding.save(output)
        old = {image for image in images if manifest.is_done(image) and results.exist(image.result_name)}
        new = [image for image in images if image not in old]
        names = _predict(new, predictor, results, manifest, config)
        numbered = enumerate(images, start=1)
        done = {number: image for number, image in numbered if image in old or image.result_name in names}
        if config.coco_json:
            write_coco_results(list(done.values()), ids, results)
        if config.coco_dataset:
            regions = write_coco_dataset(done, manifest.entries, results, config)
        if config.gallery:
            about = f"{count_of(len(done), 'image')} by {from_here(checkpoint)}"
            entries = [(image.name, manifest.entries[image.result_name]) for image in done.values()]
            cards = [Card(name, one.name, (one.height, one.width), one.pixels) for name, one in entries]
            write_gallery(output / PAGE, cards, labels, "Predictions", about)
    log.info("predicted    %d of %d images in %.1f s", len(names), len(images), now() - start)
    if old:
        log.info("skipped      %d that exist already", len(old))
    log.info("masks        %s (pixel: %s)", from_here(output / MASKS), encoding.pixel.replace("_", " "))
    if config.confidence:
        log.info("confidence   %s", from_here(output / CONFIDENCE))
    if config.coco_dataset:
        log.info("data set     %s (%s)", from_here(output / DATASET), regions)
    if config.gallery:
        log.info("to look at   %s", from_here(output / PAGE))
    if left_out := len(images) - len(done):
        raise IncompleteError(f"{left_out} of {len(images)} images are left out, as listed above")


def choose_device(config: PredictConfig, checkpoint: str) -> tuple[torch.device, str]:
    """Choose device and precision. Raise CocosegError where the model can't have them."""
    if not checkpoint.endswith(SUFFIX):
        return resolve_device(config.accelerator, config.precision)
    if config.accelerator not in (AUTO, "cpu") or config.precision not in (AUTO, "32-true"):
        raise CocosegError(
            "accelerator, precision: an ONNX file is run in float32 on the CPU; leave them out"
        )
    return torch.device("cpu"), "32-true"


def make_predictor(config: PredictConfig, checkpoint: str, device: torch.device, precision: str) -> Predictor:
    """Load the model on its device. Raise CocosegError if it can't be loaded, or settings don't fit it."""
    options: dict[str, Any] = {key: getattr(config, key) for key in ("scale", "tile", "flip")}
    options["probabilities"] = config.confidence
    if checkpoint.endswith(SUFFIX):
        return OnnxPredictor(OnnxModel(checkpoint), **options)
    model = load_model(checkpoint, config.network).to(device).to(memory_format=torch.channels_last)
    return Predictor(model, **options, autocast=DTYPES[precision])


def resolve_device(accelerator: str, precision: str) -> tuple[torch.device, str]:
    """Resolve `auto` to device and precision. Raise CocosegError where there is no such device."""
    present = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == AUTO:
        accelerator = next(name for name, is_present in present.items() if is_present)
    if not present[accelerator]:
        raise CocosegError(f"accelerator: there is no {accelerator} here")
    precision = resolve_precision({"accelerator": accelerator, "precision": precision})["precision"]
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator)), precision


def _number(images: list[ImageFile], annotations: str | None) -> tuple[list[ImageFile], dict[str, int]]:
    """Read ids and sizes of images from an annotation file; without one, number the images from 1.

    Returns:
        The images with their sizes, and the id of each name that is listed.
    """
    if annotations is None:
        return images, {image.name: number for number, image in enumerate(images, start=1)}
    listed = listed_images([image.name for image in images], coco.read(Path(annotations)).images)
    sizes = {name: (image.width, image.height) for name, image in listed.items()}
    images = [replace(image, listed=sizes.get(image.name)) for image in images]
    return images, {name: image.id for name, image in listed.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _predict(
    images: Sequence[ImageFile],
    predictor: Predictor,
    results: Results,
    manifest: Manifest,
    config: PredictConfig,
) -> set[str]:
    """Predict and keep the manifest up to date. Returns the names of the results."""
    for name in (*SUFFIXES, FOLDER):  # elsewhere in the output other programs may be writing
        for folder in (results.output / name).glob("**/"):
            remove_parts(folder)  # a process may have been killed
    for image in images:
        if not manifest.is_done(image):  # files under its name belong to another image
            results.remove_others(image.result_name)
    if results.encoding.pixel != PIXEL[config.values]:
        log.warning("masks hold class indices, because category ids don't fit; see labels.json")
    workers = config.workers or max(2, available_cores())
    names = set()
    saved = 0.0
    try:
        with closing(predict_images(images, predictor, results, config.batch_size, workers)) as entries:
            for entry in track(entries, total=len(images), what="images"):
                if entry is not None:
                    manifest.entries[entry.name] = entry
                    names.add(entry.name)
                if now() - saved > SAVE_EVERY:
                    manifest.write()
                    saved = now()
    finally:
        manifest.write()
    return names
