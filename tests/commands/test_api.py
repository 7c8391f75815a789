"""`cocoseg.train`: train.py within a process that goes on afterwards."""

import json
import logging
import os
import signal

import lightning as L
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger

import cocoseg
from cocoseg.budget.ledger import read_ledger
from cocoseg.durations import now
from cocoseg.errors import CocosegError
from conftest import ROOT
from tiny import TINY_RUN


class Interrupted(L.Callback):
    """Ctrl-C after the first step."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def places(shapes_root, tmp_path, monkeypatch) -> list[str]:
    """Overrides for a run on the built-in data set, from an empty folder."""
    monkeypatch.chdir(tmp_path)
    annotations = f"data.annotations={shapes_root}/annotations/instances.json"
    return ["data=custom", f"data.images={shapes_root}/images", annotations, *TINY_RUN, "logger=none"]


def state() -> tuple[object, ...]:
    root = logging.getLogger()
    is_job = HydraConfig.initialized() or GlobalHydra().is_initialized()
    return is_job, root.handlers[:], root.level, dict(os.environ), signal.getsignal(signal.SIGINT)


def test_trains_more_than_once_and_leaves_nothing_behind(places, tmp_path, capsys):
    before, began = state(), now()

    first = cocoseg.train([*places, "trainer.max_epochs=1"], run_dir=tmp_path / "runs" / "first")

    took = now() - began
    assert state() == before
    assert not before[0]
    assert first.folder == tmp_path / "runs" / "first"
    assert (first.epochs, first.steps) == (1, 5)
    metrics = json.loads((first.folder / "metrics.json").read_text())
    assert (first.miou, first.iou) == (metrics["miou"], metrics["iou"])
    assert list(first.iou) == cocoseg.load_model(first.model).labels.names
    assert read_ledger(first.folder / "budget.json")["used"] <= took  # the process is older
    shown = capsys.readouterr().out
    assert "mIoU (without background)" in shown
    assert shown.splitlines()[-1] in (first.folder / "train.log").read_text()

    again = cocoseg.train([*places, "resume=auto", "trainer.max_epochs=2"], run_dir=first.folder)
    assert (again.folder, again.epochs) == (first.folder, 2)
    assert state() == before


def test_a_job_of_hydra_can_train_too(places):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        with pytest.raises(CocosegError, match=r"^data\.bach_size"):
            cocoseg.train([*places, "data.bach_size=1"])
        with pytest.raises(CocosegError, match=r"^data\.batch_size"):
            cocoseg.train([*places, "data.batch_size=0"])
        assert GlobalHydra.instance().hydra is outer


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.bach_size=4"], r"^data\.bach_size: no such setting; did you mean data\.batch_size\?"),
        (["data.batch_size=0"], r"^data\.batch_size is 0; it must be"),
        (["model.base_chanels=4"], r"^model\.base_chanels: .*did you mean model\.base_channels"),
        (["data.images=no_such"], r"^data\.images: no folder no_such"),
        (["sweep=random"], r"^sweep: cocoseg\.train is one training"),
        (["optimizer.lr=1e-3,1e-2"], r"optimizer\.lr"),
        (["trainer.devices=2"], r"^trainer\.devices: cocoseg\.train uses one device"),
        ("data.bach_size=4", r"^data\.bach_size: no such setting"),
    ],
)
def test_mistakes_are_exceptions_and_leave_no_folder(places, tmp_path, overrides, message):
    before = state()
    with pytest.raises(CocosegError, match=message):
        cocoseg.train(overrides if isinstance(overrides, str) else [*places, *overrides])
    assert state() == before
    assert list(tmp_path.iterdir()) == []


class Refuses(Logger):
    """A service that asks for a key."""

    name = version = log_metrics = log_hyperparams = None

    @property
    def experiment(self) -> None:
        raise RuntimeError("no key\nlog in first")


def test_a_logger_that_refuses_leaves_no_folder(places, tmp_path):
    loggers = ["logger=[tensorboard,csv]", f"logger.mine._target_={Refuses.__module__}.Refuses"]
    with pytest.raises(CocosegError, match=r"^logger: Refuses can't begin: no key"):
        cocoseg.train([*places[:-1], *loggers], run_dir="refused")
    assert not (tmp_path / "refused").exists()


def test_the_folder_of_another_run_is_refused(places, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").write_text("program: train\n")
    with pytest.raises(CocosegError, match=r"^run_dir: taken already holds a run"):
        cocoseg.train([*places, "trainer.max_epochs=1"], run_dir="taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["config.yaml"]


def test_an_interrupt_exports_the_model_so_far(places, tmp_path):
    callback = f"+callbacks.stop._target_={Interrupted.__module__}.Interrupted"
    before = state()
    with pytest.raises(KeyboardInterrupt):
        cocoseg.train([*places, "trainer.max_epochs=100", callback])
    assert state() == before
    (folder,) = (tmp_path / "outputs" / "train").iterdir()
    assert json.loads((folder / "outcome.json").read_text())["reason"] == "SIGINT"
    cocoseg.load_model(folder / "segmentation_model.pth")


def test_all_public_names_can_be_listed_and_used():
    assert set(cocoseg.__all__) <= set(dir(cocoseg))
    assert all(callable(getattr(cocoseg, name)) for name in cocoseg.__all__)
