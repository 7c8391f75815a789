import math
from pathlib import Path

import lightning as L
import pytest
import torch

from cocoseg.config import Config, DataConfig
from cocoseg.overrides import Command
from cocoseg.scores import Scores
from cocoseg.training.checkpoints import BestCheckpoint
from cocoseg.training.event_file import TensorBoardLogger
from cocoseg.training.tensorboard_hparams import (
    ALWAYS,
    COMPARED,
    LOSS,
    MIOU,
    HyperparameterRow,
    hyperparameters,
)
from tensorboard_api import TensorBoardApi
from tiny import loader, random_batch, tiny_module, tiny_trainer

CHOICES = {"data": "coco", "model": "unet", "experiment": None}


def config(lr: float = 1e-3) -> Config:
    return Config(
        data=DataConfig(batch_size=2, image_size=[16, 16]),
        optimizer={"_target_": "torch.optim.Adam", "lr": lr},
        trainer={"max_epochs": 2},
    )


def test_a_row_has_what_was_typed_and_a_few_settings_more():
    overrides = ("loss.class_weights=null", "+trainer.max_epochs=3", "data.root=/a", "ckpt_path=b.ckpt")
    values = hyperparameters(config(), Command(overrides, choices=CHOICES))
    # Columns that all runs have: TensorBoard takes those of the first run that it finds.
    assert {*ALWAYS, *COMPARED} <= values.keys()
    assert values.keys() - {*ALWAYS, *COMPARED} == {"trainer.max_epochs"}
    assert {key: values[key] for key in (*ALWAYS, "model", "data.image_size", "trainer.max_epochs")} == {
        **{"optimizer.lr": 1e-3, "data.batch_size": 2, "seed": 0},
        **{"model": "unet", "data.image_size": "[16, 16]"},
        "trainer.max_epochs": 2,  # the value in the configuration, whatever was typed
    }


def test_a_job_of_a_sweep_has_what_was_swept():
    command = Command(("model=unet", "seed=1", "trainer.max_epochs=2"), ("trainer.max_epochs=2",), CHOICES)
    columns = {"optimizer.lr", "data.batch_size", "seed", "trainer.max_epochs"}
    assert hyperparameters(config(), command).keys() == columns


# --- the table as TensorBoard serves it


class Dies(L.Callback):
    """Ends a training after so many epochs."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: L.Trainer, *_) -> None:
        if trainer.current_epoch == self.epochs:
            raise ConnectionError("gone")


def fit(
    folder: Path,
    lr: float,
    epochs: int,
    *more: L.Callback,
    checkpoint: Path | None = None,
) -> L.Trainer:
    typed = ("experiment=demo", f"optimizer.lr={lr}")
    row = HyperparameterRow(config(lr), Command(typed, typed[1:], CHOICES | {"experiment": "demo"}))
    best = BestCheckpoint(folder / "checkpoints", export=lambda path: None)
    trainer = tiny_trainer(
        folder,
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[row, best, *more],
        enable_checkpointing=True,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    train, val = loader(*(random_batch(seed=i) for i in range(3))), loader(random_batch(seed=9))
    trainer.fit(tiny_module(lr=lr), train, val, ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> TensorBoardApi:
    """Two jobs that came to their end, one that died after its second validation, one before its first."""
    folder = tmp_path_factory.mktemp("sweep")
    fit(folder / "0", 0.01, 4)
    fit(folder / "1", 0.1, 4)
    for name, epochs in (("2", 2), ("3", 0)):
        with pytest.raises(ConnectionError):
            fit(folder / name, 0.5, 4, Dies(epochs))
    return TensorBoardApi(folder)


def test_one_row_per_run(sweep: TensorBoardApi):
    rows = sweep.rows()
    assert rows.keys() == {"0", "1", "2", "3"}
    assert {name: row["optimizer.lr"] for name, row in rows.items()} == {
        "0": 0.01,
        "1": 0.1,
        "2": 0.5,
        "3": 0.5,
    }
    assert rows["0"]["data.batch_size"] == 2
    assert rows["0"]["status"] == rows["1"]["status"] == "STATUS_SUCCESS"
    assert rows["2"]["status"] == rows["3"]["status"] != "STATUS_SUCCESS"


def test_what_was_swept_is_seen_at_once(sweep: TensorBoardApi):
    assert sweep.columns() == ["data.batch_size", "optimizer.lr", "seed", MIOU, LOSS]


def test_a_row_shows_the_best_validation(sweep: TensorBoardApi):
    for run in ("0", "1", "2"):
        curve = sweep.scalars(run, "val/miou")
        best = max(curve, key=curve.__getitem__)
        row = sweep.rows()[run]
        assert row[MIOU] == pytest.approx(curve[best])
        assert row[LOSS] == pytest.approx(sweep.scalars(run, "val/loss")[best])
    assert len(sweep.scalars("2", "val/miou")) == 2


def test_nothing_is_logged_before_there_is_something(sweep: TensorBoardApi):
    for run in ("0", "1", "2"):
        for tag in (MIOU, LOSS):
            points = sweep.scalars(run, tag)
            assert min(points) == 3  # the step of the first validation: no stray one at 0
            assert -1 not in points.values()
    assert MIOU not in sweep.rows()["3"]
    assert "hp_metric" not in sweep.get("data/plugin/scalars/tags")["0"]


@pytest.mark.slow
def test_a_resumed_run_stays_one_row(tmp_path: Path):
    with pytest.raises(ConnectionError):
        fit(tmp_path / "run", 0.01, 6, Dies(3))
    stopped = tmp_path / "run" / "checkpoints" / "best.ckpt"
    step = torch.load(stopped, weights_only=True)["global_step"]

    fit(tmp_path / "elsewhere", 0.01, 6, checkpoint=stopped)
    fit(tmp_path / "run", 0.01, 6, checkpoint=stopped)

    board = TensorBoardApi(tmp_path)
    rows = board.rows()
    assert rows.keys() == {"run", "elsewhere"}
    assert rows["run"][MIOU] == pytest.approx(rows["elsewhere"][MIOU])
    assert rows["run"]["status"] == "STATUS_SUCCESS"
    assert min(board.scalars("elsewhere", MIOU)) == step  # it takes its best along


def scored(row: HyperparameterRow, tmp_path: Path, miou: float, *, partial: bool = False) -> None:
    module, trainer = tiny_module(), tiny_trainer(tmp_path)
    module.scores, module.scores_are_partial = Scores([], miou, miou, miou), partial
    trainer.callback_metrics["val/loss"] = torch.tensor(1 - miou)
    row.on_validation_end(trainer, module)


def test_best_is_as_for_the_model_that_is_kept(tmp_path: Path):
    row = HyperparameterRow(config(), Command())
    scored(row, tmp_path, math.nan)
    assert row.best == {}
    scored(row, tmp_path, 0.5, partial=True)
    assert row.best[MIOU] == 0.5
    scored(row, tmp_path, 0.9, partial=True)
    assert row.best[MIOU] == 0.5  # a part of the data does not count
    scored(row, tmp_path, 0.75)
    scored(row, tmp_path, 0.25)
    assert row.best == {MIOU: 0.75, LOSS: 0.25}
    other = HyperparameterRow(config(), Command())
    other.load_state_dict(row.state_dict())
    assert other.best == row.best
    other.load_state_dict({"hp/val_miou": 0.75, "hp/val_loss": 0.25})  # of version 0.1.0
    assert other.best == row.best
