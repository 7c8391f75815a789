"""What a run knows of how it was asked for, in whichever process a launcher runs it."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import cocoseg.cli  # noqa: F401  registers the schema
from cocoseg.command import SWEPT, Command, command, tell_jobs
from conftest import ROOT, SMALL, run_program


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch):
    """What a job of these overrides takes for its command, in a multirun that was told those."""
    monkeypatch.setenv(SWEPT, "[]")  # set back in the end

    def told(*multirun: str, job: tuple[str, ...]) -> Command:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True)
            with open_dict(config):
                config.hydra.overrides.task = list(multirun)
                spaces = [item.split("=", 1) for item in multirun if item.startswith("sweep.space.")]
                config.sweep.space = {key.removeprefix("sweep.space."): value for key, value in spaces}
            tell_jobs(config)
            HydraConfig.instance().set_config(loader.load_sweep_config(config, list(job)))
        return command()

    yield told
    HydraConfig.instance().cfg = None


def test_what_a_multirun_chooses(job):
    typed = (
        "optimizer.lr=1e-3,1e-2",
        "loss.label_smoothing=1e-1",
        "model=unet,unet_residual",
        "+trainer.x=1",
    )
    own = ("optimizer.lr=0.001", "loss.label_smoothing=0.1", "model=unet", "+trainer.x=1")
    told = job(*typed, job=own)
    assert told.overrides == own
    assert told.swept == ("optimizer.lr=0.001", "model=unet")
    assert told.choices["model"] == "unet"


def test_what_a_sweeper_adds_is_left_out(job):
    typed = ("sweep=tpe", "sweep.trials=3", "optimizer.lr=interval(1e-4,1e-2)", "seed=1")
    of_the_sweeper = ("sweep.name=x", "sweep.trial=2", "resume=auto", "trainer.max_time=00:00:01:00")
    told = job(*typed, job=("sweep=tpe", "sweep.trials=3", "seed=1", "optimizer.lr=0.002", *of_the_sweeper))
    assert told.overrides == ("seed=1", "optimizer.lr=0.002", "trainer.max_time=00:00:01:00")
    assert told.swept == ("optimizer.lr=0.002",)
    assert str(told) == "python train.py seed=1 optimizer.lr=0.002 trainer.max_time=00:00:01:00"


def test_a_configured_space_is_chosen_too(job):
    told = job("sweep=tpe", "sweep.space.model.depth=choice(2,3)", job=("model.depth=2", "seed=1"))
    assert told.swept == ("model.depth=2",)


def test_a_single_run_chooses_nothing(job, monkeypatch: pytest.MonkeyPatch):
    job("seed=1", job=("seed=1", "resume=auto"))
    monkeypatch.delenv(SWEPT)
    assert command().overrides == ("seed=1", "resume=auto")
    assert command().swept == ()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local", "joblib"])
def test_the_table_of_hyperparameters_shows_what_was_swept_first(tmp_path: Path, launcher: str):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    told = (
        f"hydra/launcher={launcher}",
        "hydra.sweep.dir=sweep",
        "trainer.max_steps=1",
        "schedule.warmup=1e-1",
    )
    done = run_program("train", "-m", *SMALL, *told, "optimizer.lr=1e-3,1e-2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "sweep" / "1")).Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = HParamsPluginData.FromString(content).experiment.hparam_infos
    assert [column.name for column in columns if column.differs] == ["optimizer.lr"]
