"""Scores of a model on a prepared set, at the network's size and at each image's own. No Hydra."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.config import EvaluateConfig
from cocoseg.data.training_images import read_training_images, require_new
from cocoseg.errors import CocosegError
from cocoseg.evaluation.images import Images, Sample, make_loader, open_images
from cocoseg.evaluation.label_matching import Matching, match_labels
from cocoseg.evaluation.report import Report, View, as_text
from cocoseg.figures.charts import confusion_matrix
from cocoseg.figures.comparison import Example, draw_sheet
from cocoseg.figures.gallery import Card, write_gallery, write_thumbnails
from cocoseg.files import from_here, is_for_its_name, save_png, write_csv, write_json
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.predictor import Predictor
from cocoseg.inference.upsampling import enlarged_argmax
from cocoseg.labels import IGNORE_INDEX
from cocoseg.networks.device import explain_out_of_memory, to_channels_last, uses_cuda
from cocoseg.networks.pixels import normalize
from cocoseg.progress import track
from cocoseg.resizing import resize_mask

log = logging.getLogger(__name__)

METRICS, PER_CLASS, PER_IMAGE = "metrics.json", "per_class.csv", "per_image.csv"
CONFUSION, WORST, GALLERY, PREDICTIONS = "confusion.png", "worst.png", "gallery.html", "predictions"
WORST_IMAGES = 16


@explain_out_of_memory("data.batch_size or data.image_size")
def evaluate(
    config: EvaluateConfig,
    folder: Path,
    *,
    image_size: tuple[int, int] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Report:
    """Score `config.checkpoint` on `config.split` and write scores, tables and images to a folder.

    Args:
        image_size: (height, width) of the network's input; None for the size of its training.
        begin: called once all checks have passed, before anything is written.

    Raises:
        CocosegError: the model can't be loaded, the data are bad, their labels differ from the model's, or
            validation images were trained on.
    """
    start = time.monotonic()
    model = load_model(config.checkpoint, config.network)
    model.image_size = image_size or model.image_size
    on_gpu = uses_cuda(config.trainer)
    model = to_channels_last(model.to("cuda" if on_gpu else "cpu"))
    images = open_images(config)
    matching = match_labels(model.labels, images.labels, config.labels)
    require_new(images.image_keys(), read_training_images(config.checkpoint), config.split)
    begin()

    scorer = Scorer(model, images, matching, config)
    batches = make_loader(images, config.data, on_gpu=on_gpu)
    for batch in track(batches, total=len(batches), what="batches"):
        for sample, prediction in zip(batch, scorer.add(batch), strict=True):
            write_predicted(config, folder, images, sample.index, prediction)

    about = {
        "checkpoint": str(config.checkpoint),
        "split": config.split,
        "score_at": config.score_at,
        "network_size": list(model.image_size),
    }
    report = Report(about, images.labels, matching, scorer.views, images.names, config.seed)
    write_report(report, scorer, folder)
    if config.gallery:
        title = f"{config.checkpoint} on {len(images)} images ({config.split})"
        legend = "Each image with its mean IoU and the IoU of the classes in its mask, the lowest first."
        write_gallery(folder / GALLERY, cards(report, scorer.sizes), images.labels, title, legend)
    log.info("time         %.1f s", time.monotonic() - start)
    log.info("scores       %s", from_here(folder))
    return report


def write_predicted(
    config: EvaluateConfig, folder: Path, images: Images, index: int, prediction: np.ndarray
) -> None:
    """Write the files of one image; a name that allows no file is a warning, for the scores don't need it.

    Args:
        prediction: (h, w) uint8 class indices.
    """
    name = images.names[index]
    try:
        if config.save_predictions:
            images.encoding.write(prediction, folder / PREDICTIONS / f"{name}.png")
        if config.gallery:
            image, mask = images.original(index)
            pixels = image.permute(1, 2, 0).numpy()
            write_thumbnails(folder, name, pixels, prediction, images.labels, target=mask)
    except CocosegError as error:
        if not is_for_its_name(error):
            raise
        log.warning("warning: %s", error)


class Scorer:
    """Predicts and counts pixels, a batch of images at a time.

    Attributes:
        views: by name; the first one is quoted.
        sizes: height and width of each image.
    """

    def __init__(self, model: SegmentationModel, images: Images, matching: Matching, config: EvaluateConfig):
        self.model, self.matching = model, matching
        self.own_size = config.score_at == "original"
        self.device = next(model.parameters()).device
        self.predictor = Predictor(model)
        self.averaging = Predictor(model, flip=True) if config.tta else None
        height, width = model.image_size
        titles = {"original": "own size"} if self.own_size else {}
        titles["network"] = f"{height}x{width}"
        if config.tta:
            titles["tta"] = f"tta, {next(iter(titles.values()))}"
        shape = (len(images.labels), len(images.labels))
        self.views = {name: View(title, np.zeros(shape, np.int64)) for name, title in titles.items()}
        images.resize = self.predictor.resize
        self.images = images
        self.sizes: list[tuple[int, int]] = []

    @torch.inference_mode()
    def add(self, batch: list[Sample]) -> list[np.ndarray]:
        """Count a batch. Returns the predictions at the quoted size, (h, w) uint8 each."""
        inputs = torch.cat([sample.input for sample in batch])
        logits = self.model(normalize(inputs.to(self.device))).float()
        size = tuple(self.model.image_size)
        classes = logits.argmax(1).to(torch.uint8).cpu().numpy()
        predictions, targets = [], []
        for sample, image_logits, image_classes in zip(batch, logits, classes, strict=True):
            target, predicted = resize_mask(sample.mask, size), self.matching(image_classes)
            self.views["network"].add(target, predicted, self._loss(target, image_logits))
            if self.own_size:
                target = sample.mask
                predicted = self.matching(enlarged_argmax(image_logits, target.shape).cpu().numpy())
                self.views["original"].add(target, predicted)
            predictions.append(predicted)
            targets.append(target)
            self.sizes.append(sample.mask.shape)
        if self.averaging is not None:
            masks = self.averaging.masks(inputs, [target.shape for target in targets])
            for target, mask in zip(targets, masks, strict=True):
                self.views["tta"].add(target, self.matching(mask.cpu().numpy()))
        return predictions

    def example(self, index: int) -> Example:
        """An image with its prediction at the quoted size."""
        image, mask = self.images.original(index)
        if not self.own_size:
            image = self.predictor.resize(image[None])[0]
            mask = resize_mask(mask, tuple(self.model.image_size))
        with torch.inference_mode():
            (prediction,) = self.predictor.masks(self.predictor.resize(image[None]), [mask.shape])
        return Example(image.permute(1, 2, 0).numpy(), mask, self.matching(prediction.cpu().numpy()))

    def _loss(self, target: np.ndarray, logits: Tensor) -> float | None:
        """Sum of the cross entropy over the pixels; None where the labels are not the model's.

        Args:
            target: (H, W) uint8 class indices.
            logits: (C, H, W) float32.
        """
        if not self.matching.is_same:
            return None
        mask = torch.tensor(target, device=logits.device)
        losses = F.cross_entropy(logits[None], mask[None].long(), ignore_index=IGNORE_INDEX, reduction="none")
        return losses.double().sum().item()


def cards(report: Report, sizes: Sequence[tuple[int, int]]) -> list[Card]:
    """A card of the gallery for each image: its size, score, IoU per class and shares of the classes.

    Args:
        sizes: height and width of each image.
    """
    scores, predicted = report.image_scores, report.image_counts.predicted
    iou = report.image_counts.iou()
    result = []
    for image, name in enumerate(report.names):
        shown = [int(index) for index in np.argsort(iou[image]) if not np.isnan(iou[image, index])]
        card = Card(
            title=name,
            name=name,
            size=sizes[image],
            pixels={index: int(pixels) for index, pixels in enumerate(predicted[image])},
            caption=", ".join(f"{report.labels.names[i]} {iou[image, i]:.2f}" for i in shown),
            score=None if np.isnan(scores[image]) else float(scores[image]),
            has_target=True,
        )
        result.append(card)
    return result


def write_report(report: Report, scorer: Scorer, folder: Path) -> None:
    """Write all files but those of single images, and log the tables."""
    write_json(folder / METRICS, report.metrics())
    write_csv(folder / PER_CLASS, report.per_class())
    write_csv(folder / PER_IMAGE, report.per_image())
    save_png(folder / CONFUSION, confusion_matrix(report.quoted.matrix, report.labels.names))
    worst = [scorer.example(image) for image in report.worst_first()[:WORST_IMAGES]]
    save_png(folder / WORST, draw_sheet(worst, report.labels))
    log.info("\n%s\n", as_text(report))
