"""What predict.py does, read from top to bottom: find the pictures, predict what is not there yet, sum up."""

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from cocoseg import coco
from cocoseg.coco_results import entries_of, image_ids, write_results
from cocoseg.config import AUTO, PredictConfig
from cocoseg.cores import available_cores
from cocoseg.device import in_channels_last, settled
from cocoseg.encoding import MaskEncoding
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.files import from_here, remove_parts
from cocoseg.find_images import Picture, find_pictures, is_text, key, name_results
from cocoseg.gallery import FOLDER, Card, write_gallery
from cocoseg.manifest import Entry, Record
from cocoseg.model import SegmentationModel, load_model
from cocoseg.parallel import sigterm_as_exit
from cocoseg.pipeline import Pipeline, Places
from cocoseg.predictor import Predictor
from cocoseg.progress import track

log = logging.getLogger(__name__)

PAGE, RESULTS = "gallery.html", "coco_results.json"
RECORD_EVERY = 5.0  # seconds: what a kill costs
PIXEL = {"category_id": "category_id", "index": "class_index"}  # as labels.json has it
DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def open_record(config: PredictConfig, output: Path) -> Record:
    """What the output holds already, made by the same model and settings.

    Raises:
        CocosegError: they are others, or there is no such device.
    """
    _, precision = settle(config.accelerator, config.precision)
    return Record(output, _hash(Path(config.checkpoint)), _what_matters(config, precision))


def segment(config: PredictConfig, output: Path, record: Record) -> None:
    """Predict, write, and say what was done.

    Args:
        record: of the output, see `open_record`.

    Raises:
        CocosegError: nothing can be done at all.
        IncompleteError: some pictures are left out.
    """
    begin = time.monotonic()
    # Pillow's, of which images.py has a limit of its own, and about odd metadata.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module="PIL")
    found = find_pictures(config.input, output)
    pictures = _with_text_names(found, output)
    known = coco.read(Path(config.annotations)).images if config.annotations else None
    device, precision = settle(config.accelerator, config.precision)
    model = load(Path(config.checkpoint), config.network).to(device)
    predictor = Predictor(
        in_channels_last(model),
        scale=config.scale,
        tile=config.tile,
        flip=config.flip,
        scales=config.scales,
        autocast=DTYPES[precision],
    )
    encoding = MaskEncoding("palette", model.labels, PIXEL[config.values])
    if encoding.pixel != PIXEL[config.values]:
        log.warning("masks hold class indices, for category ids don't fit; labels.json says which is which")

    places = Places(output, config.overlay, config.gallery)
    names = name_results(pictures, record.names, output)
    workers = config.workers or max(2, available_cores())
    pipeline = Pipeline(predictor, encoding, places, names, batch_size=config.batch_size, workers=workers)
    places.make()
    encoding.save(output)
    with sigterm_as_exit():
        for folder in (places.masks, places.overlays, output / FOLDER):
            for below in folder.glob("**/"):
                remove_parts(below)
        there = {p for p in pictures if record.is_done(key(p, output), p.path) and places.are_there(names[p])}
        failed = _predict(pipeline, [p for p in pictures if p not in there], record)
        done = [picture for picture in pictures if picture not in failed]
        if config.coco_json:
            ids = image_ids([picture.name for picture in found], known)
            _write_results(config, done, names, ids, encoding, places, workers)
        if config.gallery:
            _write_gallery(config, done, record, encoding, places)
    fresh = len(done) - len(there)
    log.info("predicted    %d of %d pictures in %.1f s", fresh, len(found), time.monotonic() - begin)
    if there:
        log.info("skipped      %d that are there", len(there))
    log.info("masks        %s (pixel: %s)", from_here(places.masks), encoding.pixel.replace("_", " "))
    for wanted, what, place in (
        (config.overlay, "overlays", places.overlays),
        (config.coco_json, "results", output / RESULTS),
        (config.gallery, "to look at", output / PAGE),
    ):
        if wanted:
            log.info("%-12s %s", what, from_here(place))
    if left_out := len(found) - len(done):
        raise IncompleteError(f"{left_out} of {len(found)} pictures are left out, as listed above")


def load(checkpoint: Path, network: str | None) -> SegmentationModel:
    """The model of a file; `network` is the dotted name of a class that is none of ours.

    A file never chooses what is imported: whoever types the command does.

    Raises:
        CocosegError: there is no such class, or the file can't be loaded.
    """
    return load_model(checkpoint, network)


def settle(accelerator: str, precision: str) -> tuple[torch.device, str]:
    """The device and the precision that `auto` stands for.

    Raises:
        CocosegError: there is no such device.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == AUTO:
        accelerator = next(name for name, available in there.items() if available)
    if not there[accelerator]:
        raise CocosegError(f"accelerator: there is no {accelerator} here")
    precision = settled({"accelerator": accelerator, "precision": precision})["precision"]
    return torch.device({"gpu": "cuda"}.get(accelerator, accelerator)), precision


def _with_text_names(pictures: Sequence[Picture], output: Path) -> list[Picture]:
    """Those that the record and the gallery can name; the others are reported."""
    kept = [picture for picture in pictures if is_text(picture, output)]
    for picture in sorted({*pictures} - {*kept}, key=lambda picture: picture.name):
        shown = os.fsencode(picture.path).decode(errors="backslashreplace")
        log.warning("left out: %s: its name is not UTF-8; rename it", shown)
    return kept


def _predict(pipeline: Pipeline, pictures: Sequence[Picture], record: Record) -> set[Picture]:
    """Run, and keep the record. Returns the pictures that can't be read."""
    failed: set[Picture] = set()
    written = time.monotonic()
    try:
        with closing(pipeline.run(pictures)) as results:
            for picture, result in track(results, total=len(pictures), what="pictures"):
                if isinstance(result, Entry):
                    record.add(result)
                else:
                    failed.add(picture)
                    log.warning("left out: %s", result)
                if time.monotonic() - written > RECORD_EVERY:
                    record.write()
                    written = time.monotonic()
    finally:
        record.write()
    return failed


def _write_results(
    config: PredictConfig,
    pictures: Sequence[Picture],
    names: dict[Picture, str],
    ids: Mapping[str, int],
    encoding: MaskEncoding,
    places: Places,
    workers: int,
) -> None:
    listed = [picture for picture in pictures if picture.name in ids]
    if len(listed) < len(pictures):
        other = next(picture.name for picture in pictures if picture.name not in ids)
        count = len(pictures) - len(listed)
        log.warning("%s: %d pictures are not listed there, %s for one", config.annotations, count, other)

    def entries(picture: Picture) -> list[dict[str, Any]]:
        mask = encoding.read(places.mask(names[picture]))
        return entries_of(mask, ids[picture.name], picture.name, encoding.labels)

    with ThreadPoolExecutor(workers) as pool:
        parts = (listed[begin : begin + 64] for begin in range(0, len(listed), 64))  # not all in memory
        write_results(places.output / RESULTS, (one for part in parts for one in pool.map(entries, part)))


def _write_gallery(
    config: PredictConfig, pictures: Sequence[Picture], record: Record, encoding: MaskEncoding, places: Places
) -> None:
    cards = []
    for picture in pictures:
        entry = record.entries[key(picture, places.output)]
        cards.append(Card(picture.name, entry.name, (entry.height, entry.width), entry.pixels))
    about = f"{len(cards)} pictures by {from_here(config.checkpoint)}"
    write_gallery(places.output / PAGE, cards, encoding.labels, "Predictions", about)


def _what_matters(config: PredictConfig, precision: str) -> dict[str, Any]:
    """The settings that masks depend on."""
    names = ("scale", "tile", "flip", "scales", "values")
    return {**{name: getattr(config, name) for name in names}, "precision": precision}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
