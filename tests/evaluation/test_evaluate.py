import contextlib
import csv
import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import asdict, replace
from sklearn.metrics import confusion_matrix

from cocoseg.config import DataConfig, EvaluateConfig, PrepareConfig
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError
from cocoseg.evaluation.bootstrap import intervals
from cocoseg.evaluation.boundary import boundary_counts
from cocoseg.evaluation.calibration import Calibration
from cocoseg.evaluation.evaluate import evaluate, write_images
from cocoseg.evaluation.images import open_images
from cocoseg.evaluation.report import View
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.inference.export_formats import export_format
from cocoseg.inference.exported_module import Deployed
from cocoseg.inference.model import load_model
from cocoseg.inference.predictor import Predictor
from cocoseg.labels import LabelMap
from cocoseg.networks.model_file import save_model
from cocoseg.networks.pixels import normalize
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from cocoseg.preparation.prepare import prepare
from cocoseg.scores import Scores
from cocoseg.training.losses import CrossEntropyLoss
from cocoseg.training.metrics import ConfusionMatrix
from conftest import write_coco
from tiny import shapes_config

SIZE = (32, 32)  # size of the network's input; the images are larger


def settings(root: Path, folder: Path, **changes: object) -> EvaluateConfig:
    """Settings for the data set of shapes, prepared in this process."""
    base = shapes_config(root, folder / "prepared")
    config = EvaluateConfig(**{**asdict(base), "checkpoint": str(folder / "model.pth"), "gallery": False})
    config.trainer = {"accelerator": "cpu", "max_time": None}
    return replace(config, **changes)


def make_model(path: Path, labels: LabelMap, seed: int = 0) -> None:
    """Write a model that predicts each class somewhere."""
    torch.manual_seed(seed)
    network = {"_target_": "cocoseg.UNet", "num_classes": len(labels), "base_channels": 2, "depth": 2}
    net = UNet(num_classes=len(labels), base_channels=2, depth=2)
    with torch.no_grad():
        net.head.weight *= 30
        image = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
        net.head.bias -= net.eval()(normalize(image.to(torch.uint8))).mean((0, 2, 3))
    save_model(path, net.state_dict(), ModelSpec(network, labels, SIZE), None)


@pytest.fixture(scope="module")
def scored(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A network scored on all 24 images, with all files written. Tests must not change them."""
    folder = tmp_path_factory.mktemp("scored")
    config = settings(shapes_root, folder, split="all", tta=True, save_predictions=True, gallery=True)
    prepare(config)
    labels = MaskEncoding.load(folder / "prepared").labels
    make_model(folder / "model.pth", labels)
    views = evaluate(config, folder / "out")
    metrics = json.loads((folder / "out/metrics.json").read_text())
    return SimpleNamespace(
        config=config, folder=folder, out=folder / "out", labels=labels, views=views, metrics=metrics
    )


def pairs(scored: SimpleNamespace) -> list[tuple[Path, Path]]:
    """Mask files, each with the file of its prediction."""
    index = json.loads((scored.folder / "prepared/index.json").read_text())["pairs"]
    return [
        (scored.folder / "prepared" / pair["mask"], scored.out / "predictions" / f"{pair['image']}.png")
        for pair in index
    ]


def test_scores_equal_those_of_scikit_learn_on_the_saved_predictions(scored: SimpleNamespace) -> None:
    """Pillow reads the files; their pixels are category ids, 255 is ignored."""
    ids = [0, *(c.category_id for c in scored.labels.classes[1:])]
    truths, predictions = [], []
    for mask, prediction in pairs(scored):
        truth, found = (np.asarray(PIL.Image.open(path)) for path in (mask, prediction))
        assert truth.shape == found.shape
        truths.append(truth[truth != 255])
        predictions.append(found[truth != 255])
    assert len(truths) == 24
    matrix = confusion_matrix(np.concatenate(truths), np.concatenate(predictions), labels=ids)

    np.testing.assert_array_equal(scored.views["original"].matrix, matrix)
    right, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = right / (true + said - right)
    found = scored.metrics["original"]
    assert len(set(np.concatenate(predictions))) > 3
    assert found["miou"] == pytest.approx(iou[1:].mean())
    assert found["miou_with_background"] == pytest.approx(iou.mean())
    assert found["pixel_accuracy"] == pytest.approx(right.sum() / matrix.sum())
    assert found["frequency_weighted_iou"] == pytest.approx((iou * true).sum() / true.sum())
    assert found["dice"] == pytest.approx((2 * right / (true + said))[1:].mean())
    assert found["iou"] == pytest.approx(dict(zip(scored.labels.names, iou, strict=True)))
    assert found["pixels"] == matrix.sum()
    with (scored.out / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        assert row["class"] == scored.labels.names[index]
        assert float(row["iou"]) == pytest.approx(iou[index])
        assert row["precision"] == "" or float(row["precision"]) == pytest.approx(right[index] / said[index])
        assert (row["precision"] == "") == (said[index] == 0)
        assert float(row["recall"]) == pytest.approx(right[index] / true[index])
        assert float(row["pixel_share"]) == pytest.approx(true[index] / true.sum())
        assert float(row["iou_low"]) <= iou[index] <= float(row["iou_high"])


def test_predictions_equal_those_of_predict(scored: SimpleNamespace, shapes_root: Path) -> None:
    model = load_model(scored.config.checkpoint)
    ids = np.array([c.category_id or 0 for c in scored.labels.classes], dtype=np.uint8)
    for _, path in pairs(scored)[:6]:
        image = PIL.Image.open(
            shapes_root / "images" / path.relative_to(scored.out / "predictions").with_suffix("")
        )
        np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), ids[model.predict(image)])


def test_boundaries_and_calibration_are_measured_at_the_quoted_size(scored: SimpleNamespace) -> None:
    """Other views have neither. Here the logits are enlarged as a whole."""
    model = load_model(scored.config.checkpoint)
    images, calibration, counts = open_images(scored.config, SIZE), Calibration(), []
    with torch.inference_mode():
        for sample in map(images.__getitem__, range(len(images))):
            logits = F.interpolate(model.logits(sample.image), size=sample.mask.shape, mode="bilinear")
            confidence, predicted = logits[0].softmax(0).max(0)
            predicted = predicted.numpy().astype(np.uint8)
            calibration.add(sample.mask, predicted, confidence.numpy())
            counts.append(boundary_counts(sample.mask, predicted, len(scored.labels)))
    correct, target, said = np.sum(counts, axis=0)
    iou = correct / (target + said - correct)

    found = scored.metrics["original"]
    assert found["boundary_iou"] == pytest.approx(dict(zip(scored.labels.names, iou, strict=True)), abs=1e-3)
    assert found["mean_boundary_iou"] == pytest.approx(iou[1:].mean(), abs=1e-3)
    low, high = found["intervals"]["mean_boundary_iou"]
    assert low < iou[1:].mean() < high
    assert found["expected_calibration_error"] == pytest.approx(calibration.error(), abs=1e-4)
    assert 0.05 < found["expected_calibration_error"] < 1
    with (scored.out / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["boundary_iou"]) for row in rows] == list(found["boundary_iou"].values())
    for name in ("network", "tta"):
        view = scored.metrics[name]
        assert view["mean_boundary_iou"] is view["expected_calibration_error"] is None
        assert "boundary_iou" not in view
        assert "mean_boundary_iou" not in view["intervals"]


def test_scores_and_loss_at_the_networks_size_equal_those_of_training(scored: SimpleNamespace) -> None:
    model = load_model(scored.config.checkpoint)
    data = SegmentationDataModule(scored.config)
    data.prepare_data()
    data.setup("fit")
    matrix, losses, counts = ConfusionMatrix(len(scored.labels)), [], []
    with torch.inference_mode():
        for part in (data.train_set, data.val_set):
            for image, mask in part:
                logits = model(image[None])
                matrix.update(logits.argmax(1), mask[None])
                losses.append(CrossEntropyLoss()(logits, mask[None]).item())
                counts.append(int((mask != 255).sum()))
    expected = Scores.from_matrix(matrix.compute().numpy())

    found = scored.metrics["network"]
    assert found["miou"] == pytest.approx(expected.miou, abs=1e-4)
    assert found["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, abs=1e-4)
    assert found["loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-4)
    assert scored.metrics["original"]["loss"] is None


def test_averaging_has_a_column_of_its_own(scored: SimpleNamespace) -> None:
    model = load_model(scored.config.checkpoint)
    averaging, images = Predictor(model, flip=True), open_images(scored.config, SIZE)
    right = pixels = 0
    for number in range(len(images)):
        image, mask = images.original(number)
        found = averaging(image[None])[0].numpy()
        right, pixels = right + int((found == mask).sum()), pixels + int((mask != 255).sum())
    assert scored.metrics["tta"]["pixel_accuracy"] == pytest.approx(right / pixels, abs=1e-4)
    assert scored.metrics["tta"]["pixel_accuracy"] != scored.metrics["original"]["pixel_accuracy"]
    assert scored.metrics["tta"]["loss"] is None


def test_an_evaluation_writes_these_files(scored: SimpleNamespace) -> None:
    found = {path.name for path in scored.out.iterdir()}
    assert found == {
        "metrics.json",
        "per_class.csv",
        "per_image.csv",
        "confusion.png",
        "calibration.png",
        "worst.png",
        "gallery.html",
        "gallery",
        "predictions",
    }
    assert scored.metrics["images"] == 24
    assert scored.metrics["split"] == "all"
    for name in ("confusion.png", "calibration.png", "worst.png"):
        with PIL.Image.open(scored.out / name) as picture:
            picture.load()
            assert min(picture.size) > 100


def test_the_worst_images_come_first(scored: SimpleNamespace) -> None:
    with (scored.out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["iou"]) for row in rows]
    assert len(rows) == 24
    assert scores == sorted(scores)
    ids = [0, *(c.category_id for c in scored.labels.classes[1:])]
    mask, prediction = next(
        pair for pair in pairs(scored) if pair[1].name == f"{Path(rows[0]['image']).name}.png"
    )
    truth, found = (np.asarray(PIL.Image.open(path)) for path in (mask, prediction))
    iou = [
        ((truth == i) & (found == i)).sum() / (((truth == i) | (found == i)) & (truth != 255)).sum()
        for i in ids
        if (truth == i).any()
    ]
    assert scores[0] == pytest.approx(np.mean(iou))
    page = (scored.out / "gallery.html").read_text()
    assert page.index(f"<b>{scores[0]:.3f}</b>") < page.index(f"<b>{scores[-1]:.3f}</b>")
    assert len(list((scored.out / "gallery").glob("**/*.target.png"))) == 24


def test_scores_at_the_networks_size_alone(
    scored: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstraps = []

    def counted(*args: object, **options: object) -> object:
        bootstraps.append(options)
        return intervals(*args, **options)

    monkeypatch.setattr("cocoseg.evaluation.report.intervals", counted)
    views = evaluate(replace(scored.config, score_at="network", tta=False, gallery=False), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(views) == ["network"]
    assert bootstraps == [{"seed": 0}] * 2  # one of the images, one of their boundaries
    found, before = metrics["network"], scored.metrics["network"]
    assert {key: found[key] for key in before if before[key] and key != "intervals"} == {
        key: value for key, value in before.items() if value and key != "intervals"
    }
    assert found["intervals"].items() > before["intervals"].items()
    assert 0 < found["mean_boundary_iou"] < 1
    assert 0 < found["expected_calibration_error"] < 1
    with PIL.Image.open(next((tmp_path / "predictions").glob("*.png"))) as picture:
        assert picture.size == SIZE


def test_the_networks_size_can_be_set(scored: SimpleNamespace, tmp_path: Path) -> None:
    evaluate(replace(scored.config, score_at="network", tta=False), tmp_path, image_size=(48, 64))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["network_size"] == [48, 64]
    with PIL.Image.open(next((tmp_path / "predictions").glob("*.png"))) as picture:
        assert picture.size == (64, 48)


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"argmax": False}, {"resize": True}, {}], ids=str)
def test_an_onnx_file_is_scored_as_deployed(
    scored: SimpleNamespace, tmp_path: Path, options: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    model = load_model(scored.config.checkpoint)
    export_format("onnx", Deployed(model, **options), tmp_path / "model")
    config = replace(scored.config, checkpoint=str(tmp_path / "model.onnx"), tta=False, gallery=False)

    with caplog.at_level("INFO"):
        views = evaluate(config, tmp_path / "out")

    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["images"] == 24
    # Enlarged classes have coarser borders than enlarged logits.
    most = 0.002 if options else 0.05
    assert metrics["original"]["miou"] == pytest.approx(scored.metrics["original"]["miou"], abs=most)
    found, expected = (content["original"] for content in (metrics, scored.metrics))
    assert found["loss"] is None
    assert found["mean_boundary_iou"] == pytest.approx(expected["mean_boundary_iou"], abs=2 * most)
    if gives_logits := "argmax" in options:
        assert metrics["network"]["loss"] == pytest.approx(scored.metrics["network"]["loss"], rel=1e-3)
        error = expected["expected_calibration_error"]
        assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-3)
    else:
        assert found["expected_calibration_error"] is None
    assert list(views) == (["original", "network"] if gives_logits else ["original"])
    assert (tmp_path / "out/calibration.png").is_file() == gives_logits
    assert ("calibration  not measured" in caplog.text) != gives_logits
    assert len(list((tmp_path / "out/predictions").glob("*.png"))) == 24


@pytest.mark.parametrize("change", [{"tta": True}, {"score_at": "network"}], ids=str)
def test_settings_that_do_not_fit_an_onnx_file_are_refused(
    scored: SimpleNamespace, tmp_path: Path, change: dict[str, Any]
) -> None:
    (tmp_path / "model.onnx").touch()
    config = replace(scored.config, checkpoint=str(tmp_path / "model.onnx"), **{"tta": False, **change})
    with pytest.raises(CocosegError, match="an ONNX file is scored as it is, at the images' own size"):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Splits


@pytest.mark.parametrize("seed", [0, 3])
def test_the_splits_equal_those_of_training(shapes_root: Path, tmp_path: Path, seed: int) -> None:
    config = settings(shapes_root, tmp_path, seed=seed)
    data = SegmentationDataModule(config)
    data.prepare_data()
    data.setup("fit")
    for split, part in (("train", data.train_set), ("val", data.val_set)):
        expected = [part.dataset.pairs[number][0] for number in part.indices]
        assert open_images(replace(config, split=split), SIZE).names == expected
    assert len(open_images(replace(config, split="all"), SIZE)) == 24


def test_a_validation_file_is_the_split(shapes_root: Path, tmp_path: Path) -> None:
    config = settings(shapes_root, tmp_path)
    config.data.val_annotations = config.data.annotations
    assert len(open_images(replace(config, split="val"), SIZE)) == 24
    both = open_images(replace(config, split="all"), SIZE)
    assert len(both) == len(set(both.names)) == 48  # 24 file names, each of them twice


# Labels


@pytest.mark.parametrize("change", ["order", "name", "fewer"])
def test_other_labels_are_refused(scored: SimpleNamespace, tmp_path: Path, change: str) -> None:
    background, first, *others = scored.labels.classes
    classes = {
        "order": (background, *others, first),
        "name": (background, replace(first, name="zebra"), *others),
        "fewer": (background, *others),
    }
    make_model(tmp_path / "other.pth", LabelMap(classes[change]))
    config = replace(scored.config, checkpoint=str(tmp_path / "other.pth"))
    with pytest.raises(CocosegError, match="the model has other labels than these data: "):
        evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Checks


def test_classes_of_the_same_name_all_have_scores(scored: SimpleNamespace) -> None:
    same = LabelMap(tuple(replace(label, name="same") for label in scored.labels.classes))
    view = View("own size", same, seed=0)
    view.add(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert len(view.scores()["iou"]) == len(same)


@pytest.mark.parametrize(("number", "is_fatal"), [(errno.ENAMETOOLONG, False), (errno.ENOSPC, True)])
def test_a_too_long_name_is_a_warning_and_a_full_disk_an_error(
    number: int, is_fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CocosegError("x.png: can't be written") from OSError(number, "no")

    monkeypatch.setattr("cocoseg.evaluation.evaluate.write_thumbnails", refuse)
    images = SimpleNamespace(names=["x"], labels=None, original=lambda index: (torch.zeros(3, 1, 1), None))
    config = SimpleNamespace(save_predictions=False, gallery=True)
    with pytest.raises(CocosegError) if is_fatal else contextlib.nullcontext():
        write_images(config, tmp_path, images, 0, None)
    assert ("x.png: can't be written" in caplog.text) != is_fatal


def test_images_are_scaled_as_in_the_models_training(tmp_path: Path) -> None:
    """The bit depth of the evaluation's own images does not matter."""
    PIL.Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(tmp_path / "a.png")
    annotations = write_coco(tmp_path / "c.json")
    data = DataConfig(
        images=str(tmp_path), annotations=str(annotations), prepared_dir=str(tmp_path / "prepared")
    )
    config = EvaluateConfig(data=data, split="all", prepare=PrepareConfig(workers=1))
    for bits, gray in ((12, 62), (16, 3), (None, 250)):
        image, _ = open_images(config, SIZE, bits).original(0)
        assert image.unique().tolist() == [gray]
