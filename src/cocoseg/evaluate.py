"""Scores of a model on a prepared set, at the network's size and at each image's own. No Hydra."""

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.charts import confusion_matrix
from cocoseg.comparison import Example, sheet
from cocoseg.config import AUTO
from cocoseg.config_evaluate import EvaluateConfig
from cocoseg.dataset import resized_mask
from cocoseg.device import explain_out_of_memory, in_channels_last, uses_cuda
from cocoseg.enlarged_loss import enlarged_cross_entropy
from cocoseg.errors import CocosegError
from cocoseg.evaluation_data import Images, Sample, loader, open_images
from cocoseg.evaluation_report import Report, View, as_text, write_table
from cocoseg.files import from_here, is_for_its_name, save_png, write_json
from cocoseg.gallery import Card, write_gallery, write_pictures
from cocoseg.labels import IGNORE_INDEX
from cocoseg.matching import Matching, matched
from cocoseg.model import SegmentationModel, load_model
from cocoseg.pixels import normalize
from cocoseg.predictor import Predictor
from cocoseg.progress import track
from cocoseg.trained_on import noted, require_new
from cocoseg.upsampling import enlarged_argmax

log = logging.getLogger(__name__)

METRICS, PER_CLASS, PER_IMAGE = "metrics.json", "per_class.csv", "per_image.csv"
CONFUSION, WORST, GALLERY, PREDICTIONS = "confusion.png", "worst.png", "gallery.html", "predictions"
WORST_IMAGES = 16
SCALES = (0.75, 1.0, 1.25)  # that tta averages over, each with its mirror image
BATCH = 16  # images, where data.batch_size is auto


@explain_out_of_memory("data.batch_size or data.image_size")
def evaluate(config: EvaluateConfig, folder: Path, *, image_size: tuple[int, int] | None = None) -> Report:
    """Score `config.checkpoint` on `config.split` and write what was found to a folder.

    Args:
        config: all settings.
        folder: to write to.
        image_size: (height, width) that the network is to see; None for what it was trained at.

    Raises:
        CocosegError: the model can't be loaded, the data are bad, their labels differ from the model's, or
            validation images were trained on.
    """
    begin = time.monotonic()
    model = load_model(config.checkpoint, config.network)
    model.image_size = image_size or model.image_size
    on_gpu = uses_cuda(config.trainer)
    model = in_channels_last(model.to("cuda" if on_gpu else "cpu"))
    images = open_images(config)
    matching = matched(model.labels, images.labels, config.labels)
    require_new(images.image_keys(), noted(config.checkpoint) or (), config.split)
    tell_of_labels(matching)

    scorer = Scorer(model, images, matching, config)
    batch_size = BATCH if config.data.batch_size == AUTO else config.data.batch_size
    batches = loader(images, config, batch_size=batch_size, on_gpu=on_gpu)
    for sample, prediction in scorer.score(track(batches, total=len(batches), what="batches")):
        write_predicted(config, folder, images, sample.number, prediction)

    about = {
        "checkpoint": str(config.checkpoint),
        "split": config.split,
        "score_at": config.score_at,
        "network_size": list(model.image_size),
    }
    report = Report(about, images.labels, matching, scorer.views, images.names, scorer.sizes, config.seed)
    write_report(report, scorer, folder)
    if config.gallery:
        title = f"{config.checkpoint} on {len(images)} images ({config.split})"
        legend = "With each image its mean IoU, and the classes of its truth by theirs, the lowest first."
        write_gallery(folder / GALLERY, cards(report), images.labels, title, legend)
    log.info("time         %.1f s", time.monotonic() - begin)
    log.info("scores       %s", from_here(folder))
    return report


def write_predicted(
    config: EvaluateConfig, folder: Path, images: Images, number: int, prediction: np.ndarray
) -> None:
    """Pictures of an image, and its prediction, (h, w) uint8; a name that allows none costs no scores."""
    name = images.names[number]
    try:
        if config.save_predictions:
            images.encoding.write(prediction, folder / PREDICTIONS / f"{name}.png")
        if config.gallery:
            image, mask = images.original(number)
            pixels = image.permute(1, 2, 0).numpy()
            write_pictures(folder, name, pixels, prediction, images.labels, truth=mask)
    except CocosegError as error:
        if not is_for_its_name(error):
            raise
        log.warning("warning: %s", error)


class Scorer:
    """Predicts and counts, a batch of images at a time.

    Attributes:
        views: by name; the first is the one that is quoted.
        sizes: height and width of each image.
    """

    def __init__(self, model: SegmentationModel, images: Images, matching: Matching, config: EvaluateConfig):
        self.model, self.matching = model, matching
        self.own_size = config.score_at == "original"
        self.device = next(model.parameters()).device
        self.predictor = Predictor(model)
        self.averaging = Predictor(model, flip=True, scales=SCALES) if config.tta else None
        height, width = model.image_size
        titles = {"original": "own size"} if self.own_size else {}
        titles["network"] = f"{height}x{width}"
        if config.tta:
            titles["tta"] = f"tta, {next(iter(titles.values()))}"
        self.views = {name: View(title, len(images.labels)) for name, title in titles.items()}
        images.inputs = self.inputs
        self.images = images
        self.sizes: list[tuple[int, int]] = []

    def inputs(self, image: Tensor) -> list[Tensor]:
        """What the network is to see of an image (1, 3, h, w) uint8: first itself, then for averaging."""
        plain = self.predictor.inputs(image)
        return plain if self.averaging is None else plain + self.averaging.inputs(image)

    def score(self, batches: Iterable[list[Sample]]) -> Iterator[tuple[Sample, np.ndarray]]:
        """Count all images; yields each with its prediction at the size that is quoted, (h, w) uint8."""
        for batch in batches:
            predictions = self.add(batch)
            yield from zip(batch, predictions, strict=True)

    @torch.inference_mode()
    def add(self, batch: list[Sample]) -> list[np.ndarray]:
        """Count a batch."""
        inputs = zip(*(sample.inputs for sample in batch), strict=True)
        plain, *others = (torch.cat(parts) for parts in inputs)
        logits = self.model(normalize(plain.to(self.device))).float()
        size = tuple(self.model.image_size)
        classes = logits.argmax(1).to(torch.uint8).cpu().numpy()
        found = []
        for sample, one, prediction in zip(batch, logits, classes, strict=True):
            small = resized_mask(sample.mask, size)
            predicted = self._count("network", small, prediction, one)
            if self.own_size:
                prediction = enlarged_argmax(one, sample.mask.shape).cpu().numpy()
                predicted = self._count("original", sample.mask, prediction, one)
            found.append(predicted)
            self.sizes.append(sample.mask.shape)
        if self.averaging is not None:
            truths = [sample.mask if self.own_size else resized_mask(sample.mask, size) for sample in batch]
            masks = self.averaging.masks(others, [truth.shape for truth in truths])
            for truth, mask in zip(truths, masks, strict=True):
                self.views["tta"].add(truth, self.matching(mask.cpu().numpy()))
        return found

    def predicted(self, number: int) -> Example:
        """An image with its prediction at the size that is quoted."""
        image, mask = self.images.original(number)
        if not self.own_size:
            image = self.predictor.inputs(image[None])[0][0]
            mask = resized_mask(mask, tuple(self.model.image_size))
        with torch.inference_mode():
            plain = self.predictor.inputs(image[None])
            (prediction,) = self.predictor.masks(plain, [mask.shape])
        return Example(image.permute(1, 2, 0).numpy(), mask, self.matching(prediction.cpu().numpy()))

    def _count(self, view: str, truth: np.ndarray, prediction: np.ndarray, logits: Tensor) -> np.ndarray:
        """Count one image (h, w) uint8; returns the prediction in class indices of the data."""
        prediction = self.matching(prediction)
        self.views[view].add(truth, prediction, self._loss(truth, logits))
        return prediction

    def _loss(self, truth: np.ndarray, logits: Tensor) -> float | None:
        """Sum of the cross entropy over the pixels; None where the labels are not the model's."""
        if not self.matching.is_same:
            return None
        mask = torch.tensor(truth, device=logits.device)
        if mask.shape != logits.shape[1:]:
            return enlarged_cross_entropy(logits, mask).item()
        losses = F.cross_entropy(logits[None], mask[None].long(), ignore_index=IGNORE_INDEX, reduction="none")
        return losses.double().sum().item()


def tell_of_labels(matching: Matching) -> None:
    """Say what follows from labels that differ."""
    if matching.never_predicted:
        names = ", ".join(matching.never_predicted)
        log.warning("warning: the model has no class for %s: their pixels count as errors", names)
    if matching.as_background:
        names = ", ".join(matching.as_background)
        log.warning("warning: these data have no class for %s: predicted, they count as background", names)


def cards(report: Report) -> list[Card]:
    """What the gallery says of each image."""
    counts, scores = report.quoted.images(), report.quoted.image_scores()
    iou = counts.iou()
    result = []
    for number, name in enumerate(report.names):
        shown = [int(index) for index in np.argsort(iou[number]) if not np.isnan(iou[number, index])]
        card = Card(
            title=name,
            name=name,
            size=report.sizes[number],
            pixels={index: int(pixels) for index, pixels in enumerate(counts.predicted[number])},
            caption=", ".join(f"{report.labels.names[i]} {iou[number, i]:.2f}" for i in shown),
            score=None if np.isnan(scores[number]) else float(scores[number]),
            has_truth=True,
        )
        result.append(card)
    return result


def write_report(report: Report, scorer: Scorer, folder: Path) -> None:
    """Write all files but the predictions, and say what was found."""
    metrics, rows = report.metrics(), report.per_class()
    write_json(folder / METRICS, metrics)
    write_table(folder / PER_CLASS, rows)
    order, scores = report.worst_first(), report.quoted.image_scores()
    write_table(
        folder / PER_IMAGE,
        [
            {"image": report.names[number], "iou": None if np.isnan(scores[number]) else scores[number]}
            for number in order
        ],
    )
    save_png(folder / CONFUSION, confusion_matrix(report.quoted.matrix, report.labels.names))
    worst = [scorer.predicted(number) for number in order[:WORST_IMAGES]]
    save_png(folder / WORST, sheet(worst, report.labels))
    log.info("\n%s\n", as_text(report, metrics, rows))
