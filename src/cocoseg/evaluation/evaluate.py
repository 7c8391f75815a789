"""Scores of a model on a prepared set, at the network's size and at each image's own. No Hydra."""

import errno
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cocoseg.config import FULL_BITS, EvaluateConfig
from cocoseg.config_cross_checks import check_checkpoint
from cocoseg.data.training_images import read_training_images, require_new
from cocoseg.durations import now
from cocoseg.errors import CocosegError, count_of
from cocoseg.evaluation.images import Images, Sample, make_loader, open_images
from cocoseg.evaluation.report import View, as_text, number
from cocoseg.figures.charts import confusion_matrix, reliability
from cocoseg.figures.comparison import Example, draw_sheet
from cocoseg.figures.gallery import Card, write_gallery, write_thumbnails
from cocoseg.files import from_here, save_png, write_csv, write_json
from cocoseg.inference.model import SegmentationModel, load_model
from cocoseg.inference.onnx_model import SUFFIX, OnnxModel, OnnxPredictor
from cocoseg.inference.probabilities import confidences
from cocoseg.inference.upsampling import enlarged_argmax
from cocoseg.labels import IGNORE_INDEX
from cocoseg.networks.device import explain_out_of_memory, uses_cuda
from cocoseg.progress import track
from cocoseg.resizing import resize_mask

log = logging.getLogger(__name__)

METRICS, PER_CLASS, PER_IMAGE = "metrics.json", "per_class.csv", "per_image.csv"
CONFUSION, CALIBRATION, WORST = "confusion.png", "calibration.png", "worst.png"
GALLERY, PREDICTIONS = "gallery.html", "predictions"
WORST_IMAGES = 16


@explain_out_of_memory("data.batch_size or data.image_size")
def evaluate(
    config: EvaluateConfig,
    folder: Path,
    *,
    image_size: tuple[int, int] | None = None,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, View]:
    """Score `config.checkpoint` on `config.split` and write scores, tables and images to a folder.

    Args:
        image_size: (height, width) of the network's input; None for the size of its training.
        begin: called once all checks have passed, before anything is written.

    Returns:
        The results by their names in metrics.json; the first one is the score to quote.

    Raises:
        CocosegError: the model can't be loaded, the data are bad, their labels differ from the model's, or
            validation images were trained on.
    """
    start = now()
    checkpoint = check_checkpoint(config.checkpoint)
    scorer = make_scorer(config, checkpoint, image_size)
    model = scorer.model
    images = open_images(config, scorer.input_size, model.bits or FULL_BITS)
    if difference := model.labels.difference(images.labels):
        raise CocosegError(
            f"the model has other labels than these data: {difference} in the data; "
            "set data.labels and data.subset.categories as in its training, or give other data"
        )
    require_new(images.image_keys(), read_training_images(checkpoint), config.split)
    begin()

    batches = make_loader(images, config.data, on_gpu=model.device.type == "cuda")
    for batch in track(batches, total=len(batches), what="batches"):
        for sample, prediction in zip(batch, scorer.add(batch), strict=True):
            write_images(config, folder, images, sample.index, prediction)

    write_report(config, scorer, images, folder)
    if model.license is not None:
        log.info("license      %s, of the weights that the training began with", model.license)
    log.info("time         %.1f s", now() - start)
    log.info("scores       %s", from_here(folder))
    return scorer.views


def write_images(
    config: EvaluateConfig, folder: Path, images: Images, index: int, predicted: np.ndarray
) -> None:
    """Write the files of one image with its prediction (h, w) uint8. Warn if its name is too long."""
    name = images.names[index]
    try:
        if config.save_predictions:
            images.encoding.write(predicted, folder / PREDICTIONS / f"{name}.png")
        if config.gallery:
            image, mask = images.original(index)
            pixels = image.permute(1, 2, 0).numpy()
            write_thumbnails(folder, name, pixels, predicted, images.labels, target=mask)
    except CocosegError as error:
        if getattr(error.__cause__, "errno", None) != errno.ENAMETOOLONG:
            raise  # on a full disk the report could not be written either
        log.warning("warning: %s", error)


def make_scorer(config: EvaluateConfig, checkpoint: str, image_size: tuple[int, int] | None) -> "Scorer":
    """Load the model and choose its scorer; see `evaluate`."""
    if not checkpoint.endswith(SUFFIX):
        model = load_model(checkpoint, config.network)
        model.image_size = image_size or model.image_size
        device = "cuda" if uses_cuda(config.trainer) else "cpu"
        return Scorer(model.to(device).to(memory_format=torch.channels_last), config)
    if config.tta or config.score_at == "network" or image_size:
        raise CocosegError(
            "tta, score_at=network and data.image_size are for segmentation_model.pth; an ONNX file is "
            "scored as it is, at the images' own size"
        )
    exported = OnnxModel(checkpoint)
    return (Scorer if exported.gives_scores else OnnxScorer)(exported, config)


class Scorer:
    """Predicts and counts pixels, a batch of images at a time.

    Attributes:
        views: results by name; the first one is `quoted`.
        sizes: height and width of each image.
        input_size: height and width of its input images; None for each image's own.
    """

    def __init__(self, model: SegmentationModel | OnnxModel, config: EvaluateConfig):
        self.model, self.averages = model, config.tta
        self.size = model.image_size
        self.input_size: tuple[int, int] | None = self.size
        self.at_own_size = config.score_at == "original"
        titles = {"original": "own size"} if self.at_own_size else {}
        titles["network"] = "{}x{}".format(*self.size)
        if config.tta:
            titles["tta"] = f"tta, {next(iter(titles.values()))}"
        self.views = {name: View(title, model.labels, config.seed) for name, title in titles.items()}
        self.quoted = next(iter(self.views.values()))
        self.sizes: list[tuple[int, int]] = []

    @torch.inference_mode()
    def add(self, batch: list[Sample]) -> list[np.ndarray]:
        """Count a batch. Returns the predictions at the quoted size, (h, w) uint8 each."""
        inputs = torch.cat([sample.image for sample in batch])
        logits = self.model.logits(inputs)
        average = self._average(inputs, logits) if self.averages else logits
        targets = [resize_mask(sample.mask, self.size) for sample in batch]
        predictions = []
        columns = zip(batch, logits, average, targets, _losses(logits, targets), strict=True)
        for sample, scores, mean, target, loss in columns:
            predicted = _argmax(scores, self.size)
            self.views["network"].add(target, predicted, loss)
            if self.at_own_size:
                target = sample.mask
                predicted = _argmax(scores, target.shape)
                self.views["original"].add(target, predicted)
            self.quoted.add_boundary(target, predicted)
            confidence, rows = confidences(scores, torch.from_numpy(predicted))
            self.quoted.calibration.add(target[rows], predicted[rows], confidence.cpu().numpy(), rows.step)
            if self.averages:
                self.views["tta"].add(target, _argmax(mean, target.shape))
            predictions.append(predicted)
            self.sizes.append(sample.mask.shape)
        return predictions

    @torch.inference_mode()
    def example(self, images: Images, index: int) -> Example:
        """Predict an image at the size of the quoted score."""
        sample = images[index]
        image, target = sample.image[0], resize_mask(sample.mask, self.size)
        if self.at_own_size:
            image, target = images.original(index)
        return Example(image.permute(1, 2, 0).numpy(), target, self._predict(sample, target.shape))

    def _predict(self, sample: Sample, size: Sequence[int]) -> np.ndarray:
        return _argmax(self.model.logits(sample.image)[0], size)

    def _average(self, image: Tensor, logits: Tensor) -> Tensor:
        """Mean probabilities of images, whose logits are given, and their mirror images."""
        mirrored = self.model.logits(image.flip(-1)).flip(-1)
        return (logits.softmax(1) + mirrored.softmax(1)) / 2


class OnnxScorer(Scorer):
    """Counts the masks of an ONNX file that gives classes alone, at the images' own sizes."""

    def __init__(self, model: OnnxModel, config: EvaluateConfig):
        super().__init__(model, config)
        self.predictor = OnnxPredictor(model)
        self.input_size = None
        del self.views["network"]

    def add(self, batch: list[Sample]) -> list[np.ndarray]:
        predictions = [self._predict(sample, sample.mask.shape) for sample in batch]
        for sample, predicted in zip(batch, predictions, strict=True):
            self.quoted.add(sample.mask, predicted)
            self.quoted.add_boundary(sample.mask, predicted)
            self.sizes.append(sample.mask.shape)
        return predictions

    def _predict(self, sample: Sample, size: Sequence[int]) -> np.ndarray:
        return self.predictor(sample.image)[0].numpy()


def _argmax(scores: Tensor, size: Sequence[int]) -> np.ndarray:
    """Class indices (h, w) uint8 from scores (C, H, W) float32, enlarged to a size (h, w)."""
    return enlarged_argmax(scores, size).cpu().numpy()


def _losses(logits: Tensor, targets: Sequence[np.ndarray]) -> list[float]:
    """Sum of the cross entropy over the pixels of each image."""
    masks = torch.tensor(np.stack(targets), device=logits.device).long()
    losses = F.cross_entropy(logits, masks, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.double().sum((1, 2)).tolist()


def write_report(config: EvaluateConfig, scorer: Scorer, images: Images, folder: Path) -> None:
    """Write all files except those of single images, and log the tables."""
    quoted = scorer.quoted
    about: dict[str, Any] = {key: getattr(config, key) for key in ("checkpoint", "split", "score_at")}
    about |= {"network_size": list(scorer.size), "images": len(images), "license": scorer.model.license}
    write_json(folder / METRICS, about | {name: view.scores() for name, view in scorer.views.items()})
    write_csv(folder / PER_CLASS, quoted.per_class())
    worst = quoted.worst_first()
    rows = [{"image": images.names[index], "iou": number(quoted.image_scores[index])} for index in worst]
    write_csv(folder / PER_IMAGE, rows)
    save_png(folder / CONFUSION, confusion_matrix(quoted.matrix, images.labels.names))
    found = quoted.calibration
    if found.pixels.any():
        save_png(folder / CALIBRATION, reliability(found.correct, found.pixels, found.error()))
    elif isinstance(scorer, OnnxScorer):
        log.info("calibration  not measured: the file gives no probabilities; export it with argmax=false")
    examples = [scorer.example(images, index) for index in worst[:WORST_IMAGES]]
    save_png(folder / WORST, draw_sheet(examples, images.labels))
    if config.gallery:
        title = f"{config.checkpoint} on {count_of(len(images), 'image')} ({config.split})"
        legend = "Each image with its mean IoU and the IoU of the classes in its mask, the lowest first."
        cards = make_cards(quoted, images.names, scorer.sizes)
        write_gallery(folder / GALLERY, cards, images.labels, title, legend)
    log.info("\n%s\n", as_text(list(scorer.views.values())))


def make_cards(view: View, names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Card]:
    """Make a card of the gallery for each image: its size, score, IoU per class and shares of the classes."""
    result = []
    for image, iou in enumerate(view.image_counts.iou()):
        shown = [index for index in np.argsort(iou) if not np.isnan(iou[index])]
        caption = ", ".join(f"{view.labels.names[index]} {iou[index]:.2f}" for index in shown)
        pixels = dict(enumerate(view.image_counts.predicted[image].tolist()))
        score, name = number(view.image_scores[image]), names[image]
        result.append(Card(name, name, sizes[image], pixels, caption, score, has_target=True))
    return result
