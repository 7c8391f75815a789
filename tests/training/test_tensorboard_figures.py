import io
import re
from pathlib import Path

import lightning as L
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import Tensor
from torch.utils.data import DataLoader

from cocoseg.budget import budget as budget_module
from cocoseg.budget.budget import END, Budget
from cocoseg.config import Config, DataConfig
from cocoseg.figures.comparison import GAP
from cocoseg.figures.text import LINE
from cocoseg.overrides import Command
from cocoseg.training import tensorboard_figures
from cocoseg.training.event_file import TensorBoardLogger
from cocoseg.training.tensorboard_figures import EXAMPLES, SHARE, Figures, RunTexts
from tensorboard_api import TensorBoardApi
from tiny import Reads, loader, painted, random_batch, tiny_module, tiny_trainer

CHARTS = ("validation_classes/iou", "validation_classes/confusion")
SIZE = 16  # pixels of an image, shown tenfold


def pairs(count: int) -> list[tuple[Tensor, Tensor]]:
    """Number i has i lone pixels of class 1, which `Reads` takes for background."""
    made = []
    for number in range(count):
        mask = torch.zeros(SIZE, SIZE, dtype=torch.int64)
        prediction = mask.clone()
        mask.view(-1)[: 2 * number : 2] = 1
        prediction.view(-1)[-1] = 2
        made.append((painted(prediction[None])[0], mask))
    return made


def val_loader(count: int, batch: int = 4) -> DataLoader:
    return DataLoader(pairs(count), batch_size=batch)


def logger(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="", default_hp_metric=False)


def trainer_with(folder: Path, *callbacks: L.Callback, **options) -> L.Trainer:
    options = {"max_epochs": 2, "num_sanity_val_steps": 1, "log_every_n_steps": 1, **options}
    return tiny_trainer(folder, logger=logger(folder), callbacks=list(callbacks), **options)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def steps(found: EventAccumulator, tag: str) -> list[int]:
    return [image.step for image in found.Images(tag)]


def pixels(found: EventAccumulator, tag: str, which: int = -1) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(found.Images(tag)[which].encoded_image_string)) as picture:
        return np.asarray(picture.convert("RGB"))


def examples(found: EventAccumulator) -> list[str]:
    return [tag for tag in sorted(found.Tags()["images"]) if tag.startswith("validation_examples/")]


def train(count: int = 3) -> DataLoader:
    return loader(*(random_batch(seed=number, size=SIZE) for number in range(count)))


def test_losses_scores_and_figures(tmp_path):
    budget = Budget(None)
    figures = Figures(budget)
    trainer = trainer_with(tmp_path, figures)
    trainer.fit(tiny_module(), train(), val_loader(20))

    found = events(tmp_path)
    per_epoch = {
        *("train/loss", "val/loss", "val/miou", "val/miou_with_background", "val/pixel_accuracy"),
        *("validation_iou/background", "validation_iou/cat"),
    }
    assert per_epoch <= set(found.Tags()["scalars"])
    assert "validation_iou/dog" not in found.Tags()["scalars"]  # does not occur
    assert "hp_metric" not in found.Tags()["scalars"]
    for name in per_epoch:
        assert len(found.Scalars(name)) == 2, name
    last = {name: found.Scalars(name)[-1].value for name in per_epoch}
    assert last == pytest.approx({name: trainer.callback_metrics[name].item() for name in per_epoch})
    assert len(examples(found)) == EXAMPLES
    for tag in (*CHARTS, *examples(found)):
        assert steps(found, tag) == [3, 6], tag  # none of the sanity check
    assert 0 < budget.expected["figures"] < 60


def test_the_examples_are_the_same_images_from_all_over_the_set(tmp_path):
    module = tiny_module(Reads(), lr=0.0)  # says the same whenever it is asked
    trainer_with(tmp_path, Figures(Budget(None))).fit(module, train(), val_loader(100))

    found = events(tmp_path)
    targets = [pixels(found, tag)[:160, 164:324] for tag in examples(found)]  # a pixel of the mask is 100
    assert [np.count_nonzero(target.any(-1)) // 100 for target in targets] == [0, 14, 28, 42, 57, 71, 85, 99]
    for tag in examples(found):
        assert (pixels(found, tag, 0) == pixels(found, tag, 1)).all()
    other = tmp_path / "other"  # a run with other weights and batches
    trainer_with(other, Figures(Budget(None))).fit(tiny_module(), train(), val_loader(100, batch=32))
    for tag in examples(found):
        assert (pixels(found, tag)[:160, :324] == pixels(events(other), tag)[:160, :324]).all()


def test_a_strip_shows_what_the_validation_said(tmp_path):
    trainer_with(tmp_path, Figures(Budget(None)), max_epochs=1).fit(
        tiny_module(Reads(), lr=0.0), train(), val_loader(3)
    )
    found = events(tmp_path)
    tags = examples(found)
    assert len(tags) == 3
    for tag in tags:
        picture = pixels(found, tag)
        assert picture.shape == (160 + 2 * LINE, 4 * (160 + GAP) - GAP, 3)
        prediction = picture[:160, 328:488]
        assert (prediction[-10:, -10:] == (0, 0, 255)).all()  # the last pixel, `dog`
        assert not prediction[:-10].any()


def test_a_validation_that_is_cut_short_has_fewer_examples(tmp_path):
    class Cut(L.Callback):
        def on_validation_batch_start(self, trainer, module, batch, number, *_):
            if number == 1 and trainer.global_step == 6:
                raise StopIteration

    trainer_with(tmp_path, Cut(), Figures(Budget(None))).fit(tiny_module(), train(), val_loader(16))

    found = events(tmp_path)
    again = [tag for tag in examples(found) if steps(found, tag) == [3, 6]]
    assert 0 < len(again) < EXAMPLES
    assert all(steps(found, tag) in ([3], [3, 6]) for tag in examples(found))
    assert steps(found, "validation_classes/iou") == [3, 6]


class Clock:
    """Time that only figures, and the epochs that `Epoch` counts, take."""

    def __init__(self, monkeypatch, figure: float):
        self.now = 0.0
        for module in (budget_module, tensorboard_figures):
            monkeypatch.setattr(module, "now", lambda: self.now)
        draw = tensorboard_figures.figures

        def slow(*args):
            for drawn in draw(*args):
                self.now += figure
                yield drawn

        monkeypatch.setattr(tensorboard_figures, "figures", slow)

    def epoch(self, seconds: float) -> L.Callback:
        return LambdaCallback(on_train_epoch_start=lambda *_: setattr(self, "now", self.now + seconds))


def test_figures_come_ever_more_rarely_and_at_the_end_whatever_they_take_without_a_limit(
    tmp_path, monkeypatch
):
    Clock(monkeypatch, figure=1e6)
    trainer_with(tmp_path, Figures(Budget(None)), max_epochs=10).fit(tiny_module(), train(1), val_loader(2))
    assert steps(events(tmp_path), "validation_classes/iou") == [1, 2, 3, 4, 5, 7, 9, 10]


def test_figures_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, figure=0.125)  # four of them each time: two charts, two examples
    budget = Budget(1000.0, began=0.0)
    figures = Figures(budget)
    trainer_with(tmp_path, clock.epoch(20.0), figures, max_epochs=20).fit(
        tiny_module(), train(1), val_loader(2)
    )
    drawn = steps(events(tmp_path), "validation_classes/iou")
    assert drawn[0] > 1
    assert drawn[-1] == 20
    assert 3 < len(drawn) < 9
    assert budget.spent["saving"] == pytest.approx(0.5 * len(drawn))
    assert budget.spent["saving"] - 0.5 <= SHARE * budget.used()


def test_the_last_figures_keep_to_the_limit(tmp_path, monkeypatch):
    """After 82 s of training 18 s are left, 13 of them for export and exit; figures take one each."""
    clock = Clock(monkeypatch, figure=1.0)
    budget = Budget(100.0, began=0.0)
    budget.expect("export", 10.0)
    kept = []
    note = LambdaCallback(on_train_epoch_start=lambda *_: kept.append(budget.seconds_after_validation()))
    trainer_with(tmp_path, Figures(budget), note, clock.epoch(82.0), max_epochs=1).fit(
        tiny_module(), train(1), val_loader(20)
    )
    assert kept == [pytest.approx(1.1 * (10 + 1) + END)]  # time for figures, though none was measured
    shown = [tag for tag in events(tmp_path).Tags()["images"] if tag.startswith("validation_examples")]
    assert shown == [
        "validation_examples/1",
        "validation_examples/2",
        "validation_examples/3",
    ]  # after two charts
    assert -1 < budget.left() - budget.seconds_after_figures() < 1


def test_figures_that_fail_do_not_end_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tensorboard_figures, "draw_comparison", lambda *_: 1 / 0)
    trainer = trainer_with(tmp_path, Figures(Budget(None)))
    trainer.fit(tiny_module(), train(), val_loader(5))
    assert trainer.global_step == 6
    said = [
        record.message for record in caplog.records if record.name == "cocoseg.training.tensorboard_figures"
    ]
    assert len(said) == 2  # validations
    assert said[0].startswith("figures for the loggers: ZeroDivisionError")


class Wall(CSVLogger):
    """A logger that takes images, as that of Weights & Biases does."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.images: dict[str, list] = {}

    def log_image(self, key: str, images: list, step: int) -> None:
        self.images.setdefault(key, []).append((step, *images))


def test_figures_go_to_all_loggers_that_take_them(tmp_path):
    wall, config = Wall(tmp_path), Config(data=DataConfig(images="images", annotations="instances.json"))
    trainer = tiny_trainer(
        tmp_path,
        logger=[CSVLogger(tmp_path, name="table"), wall, logger(tmp_path / "board")],
        callbacks=[RunTexts(config, Command()), Figures(Budget(None))],
        max_epochs=1,
    )
    trainer.fit(tiny_module(), train(), val_loader(5))
    found = events(tmp_path / "board")
    assert wall.images.keys() == {*CHARTS, *examples(found)}
    for tag, [(step, figure)] in wall.images.items():
        assert steps(found, tag) == [step] == [3]
        assert (pixels(found, tag) == figure).all()
    hparams = yaml.safe_load((tmp_path / "table" / "version_0" / "hparams.yaml").read_text())
    assert hparams["data"]["images"] == "images"


def test_a_resumed_run_shows_the_same_images_and_no_step_twice(tmp_path):
    config = Config(data=DataConfig(images="images", annotations="instances.json"))

    def callbacks():
        return RunTexts(config, Command()), Figures(Budget(None))

    def fit(folder, checkpoint=None, **options):
        module = tiny_module(Reads(), lr=0.0)
        trainer = trainer_with(folder, *callbacks(), **options)
        trainer.fit(module, train(), val_loader(40), ckpt_path=checkpoint, weights_only=True)
        return trainer

    fit(tmp_path / "run", max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    first = {tag: pixels(events(tmp_path / "run"), tag) for tag in examples(events(tmp_path / "run"))}
    fit(tmp_path / "run", tmp_path / "last.ckpt", max_epochs=3)  # is lost
    fit(tmp_path / "run", tmp_path / "last.ckpt", max_epochs=3)

    found = events(tmp_path / "run")
    assert examples(found) == list(first)
    for tag, picture in first.items():
        assert (pixels(found, tag) == picture).all()
        assert steps(found, tag) == [3, 6, 9]
    loss_steps = [point.step for point in found.Scalars("train/loss_step")]
    assert loss_steps == sorted(loss_steps)
    assert [point.step for point in found.Scalars("val/loss")] == [2, 5, 8]


def test_without_tensorboard_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard_figures, "figures", lambda *_: 1 / 0)
    trainer = tiny_trainer(
        tmp_path, max_epochs=1, callbacks=[Figures(Budget(None)), RunTexts(Config(), Command())]
    )
    trainer.fit(tiny_module(), train(), val_loader(3))


def test_command_configuration_and_report_as_text(tmp_path):
    data = DataConfig(
        images="images", annotations="a.json", val_annotations="b.json", prepared_dir=str(tmp_path)
    )
    (tmp_path / "val").mkdir()
    (tmp_path / "report.md").write_text("# What was prepared")
    (tmp_path / "val" / "report.md").write_text("# For validation")
    command = Command(("optimizer.lr=1e-2", 'run_dir="my runs"'))
    texts = RunTexts(Config(seed=7, data=data), command)

    trainer_with(tmp_path / "run", texts, max_epochs=1).fit(tiny_module(), train(1), val_loader(4))

    found = events(tmp_path / "run")
    content = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0] for tag in found.Tags()["tensors"]}
    (charts,) = Layout.FromString(content.pop("custom_scalars__config__")).category
    lines = {
        chart.title: {tag for tag in found.Tags()["scalars"] if re.match("|".join(chart.multiline.tag), tag)}
        for chart in charts.chart
    }
    assert lines.pop("IoU of each class") > {"validation_iou/cat"}
    assert lines == {
        "loss": {"train/loss", "val/loss"},
        "mIoU": {"val/miou", "val/miou_with_background"},
    }
    shown = {tag.removesuffix("/text_summary"): text.decode() for tag, text in content.items()}
    assert shown["run/command"] == "    python train.py optimizer.lr=1e-2 'run_dir=\"my runs\"'"
    assert shown["run/config"].startswith("    seed: 7\n    run_dir: outputs\n")
    assert shown["run/data"] == "# What was prepared"
    assert shown["run/validation_data"] == "# For validation"


@pytest.mark.slow
def test_tensorboard_serves_all_of_it(tmp_path):
    config = Config(data=DataConfig(images="images", annotations="instances.json"))
    trainer_with(tmp_path / "run", RunTexts(config, Command(("seed=0",))), Figures(Budget(None))).fit(
        tiny_module(), train(), val_loader(20)
    )
    board = TensorBoardApi(tmp_path)
    shown = board.get("data/plugin/images/tags")["run"]
    assert set(shown) == {*CHARTS, *(f"validation_examples/{rank}" for rank in range(1, EXAMPLES + 1))}
    listed = board.get("data/plugin/images/images?run=run&tag=validation_examples/1&sample=0")
    assert [image["step"] for image in listed] == [3, 6]
    assert set(board.get("data/plugin/text/tags")["run"]) == {
        "run/command/text_summary",
        "run/config/text_summary",
    }
    (text,) = board.get("data/plugin/text/text?run=run&tag=run/command/text_summary")
    assert "python train.py seed=0" in text["text"]
