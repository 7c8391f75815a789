"""The command that a run takes for its own, in whichever process a launcher runs it."""

import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import cocoseg.cli  # noqa: F401  registers resolvers
from cocoseg.config import Config, EvaluateConfig, PredictConfig
from cocoseg.durations import BEGAN, command_begin, now
from cocoseg.errors import CocosegError, name_programs
from cocoseg.overrides import (
    SWEPT,
    Command,
    check_overrides,
    command,
    force_new_keys,
    pass_to_jobs,
    preset_arguments,
    quote_paths,
)
from conftest import ROOT, SMALL, run_here, run_program


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch):
    """The command of a job with overrides of its own, in a multirun with others."""
    for name, value in ((SWEPT, "[]"), (BEGAN, "")):
        monkeypatch.setenv(name, value)  # set back in the end

    def told(*multirun: str, job: tuple[str, ...]) -> Command:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True)
            with open_dict(config):
                config.hydra.overrides.task = list(multirun)
                spaces = [item.split("=", 1) for item in multirun if item.startswith("sweep.space.")]
                config.sweep.space = {key.removeprefix("sweep.space."): value for key, value in spaces}
            pass_to_jobs(config)
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


def test_jobs_know_when_the_multirun_began(job, monkeypatch: pytest.MonkeyPatch):
    began = command_begin()
    job("seed=1,2", job=("seed=1",))
    monkeypatch.setattr("cocoseg.durations._began", now())  # as in another process
    assert command_begin() == pytest.approx(began, abs=0.01)


def test_what_a_sweeper_adds_is_left_out(job):
    typed = ("sweep=tpe", "sweep.trials=3", "optimizer.lr=interval(1e-4,1e-2)", "seed=1")
    of_the_sweeper = ("sweep.name=x", "sweep.trial=2", "resume=auto", "trainer.max_time=00:00:01:00")
    told = job(*typed, job=("sweep=tpe", "sweep.trials=3", "seed=1", "optimizer.lr=0.002", *of_the_sweeper))
    assert told.overrides == ("seed=1", "optimizer.lr=0.002", "trainer.max_time=00:00:01:00")
    assert told.swept == ("optimizer.lr=0.002",)
    assert str(told) == "python train.py seed=1 optimizer.lr=0.002 trainer.max_time=00:00:01:00"


def test_programs_are_named_as_they_were_called(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["train.py"])
    text = "/a/train.py: 1 missing; run prepare.py again, or python prepare.py data.download=true"
    assert name_programs(text) == text
    monkeypatch.setattr("sys.argv", ["/usr/bin/cocoseg-train"])
    new = "/a/train.py: 1 missing; run cocoseg-prepare again, or cocoseg-prepare data.download=true"
    assert name_programs(text) == new
    assert str(Command(("resume=auto", "run_dir=a b"))) == "cocoseg-train resume=auto 'run_dir=a b'"


def test_config_path_is_relative_to_where_it_is_typed(tmp_path: Path):
    copytree(ROOT / "conf", tmp_path / "mine")
    (tmp_path / "mine" / "prepare.yaml").write_text("defaults: [train, _self_]\nseed: 7\n")
    done = run_here("prepare", "--config-path", "mine", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nseed: 7\n" in done.stdout


def test_help_may_be_read_in_part(tmp_path: Path):
    command = f"'{sys.executable}' '{ROOT}/train.py' --help | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("", "")


def test_shells_complete_presets_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMP_LINE", "python train.py model=unet_res")
    done = run_here("train", "-sc", "query=bash", cwd=tmp_path)
    assert (done.stdout.split(), done.returncode) == (
        ["model=unet_residual", "model=unet_resnet34", "model=unet_resnet50"],
        0,
    )


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
def test_the_table_of_hyperparameters_shows_what_was_swept(tmp_path: Path, launcher: str):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    told = (
        f"hydra/launcher={launcher}",
        "hydra.sweep.dir=sweep",
        "trainer.max_steps=1",
        "schedule.warmup=1e-1",
    )
    done = run_program("train", "-m", *SMALL, *told, "loss.label_smoothing=0,0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "sweep" / "1")).Reload()
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = HParamsPluginData.FromString(content).experiment.hparam_infos
    names = ["optimizer.lr", "data.batch_size", "seed", "loss.label_smoothing"]
    assert [column.name for column in columns] == names


# ---- keys that no program has


OPTIONS = {
    "data": ["coco", "custom"],
    "model": ["unet", "unet_residual"],
    "mine/part": ["x"],
    "sweep": ["tpe"],
    "hydra/launcher": [],
    "callbacks": ["early_stopping", "none"],
}


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.subset.size=3",
        "data=custom",
        "data@x=custom",
        "~callbacks",
        "+callbacks.mine._target_=x",
        "+model.anything.goes=1",
        "mine/part=null",
        "model=unet,unet_residual",
        "model=choice(unet,other)",
        "mine/part=x",
        "hydra/launcher=local",
        "hydra.sweep.dir=x",
        "sweep.space.model.depth=2,3",
        "data.labels.animal=[dog]",
        "sweep.total_time=00:01:00:00",
        "callbacks=[early_stopping,none]",
        "++callbacks.mine._target_=x",
        "++schedule.power=2",
    ],
)
def test_known_keys_pass(override: str) -> None:
    check_overrides([override], Config, OPTIONS)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.sise=3", "data.sise: no such setting; did you mean data.subset.size?"),
        ("++bach_size=3", "bach_size: no such setting; did you mean data.batch_size?"),
        ("data=coco,cutsom", "data=cutsom: no such preset; did you mean data=custom?"),
        ("+sweep=halv", "sweep=halv: no such preset; there are tpe"),
        ("lr=3", "lr: no such setting; did you mean optimizer.lr?"),
        ("+xyz=1", "xyz: no such setting; --help lists all"),
        ("learning_rate=3", "learning_rate: no such setting; did you mean optimizer.lr?"),
        ("max_epochs=3", "max_epochs: no such setting; did you mean trainer.max_epochs?"),
        ("base_chanels=3", "base_chanels: no such setting; did you mean model.base_channels?"),
        ("encoder=x", "encoder: no such setting; did you mean model.encoder?"),
        ("label_smoothing=1", "label_smoothing: no such setting; did you mean loss.label_smoothing?"),
        ("gpus=2", "gpus: no such setting; did you mean trainer.devices?"),
        ("schedule=cosine", "schedule=cosine: schedule is a group of settings, as in schedule.name"),
        ("schedule.power=2", "schedule.power: no such setting; known: schedule._target_, "),
        (
            "callbacks=[none,early_stoping]",
            "callbacks=early_stoping: no such preset; did you mean callbacks=e",
        ),
        ("+trainer.callbacks.x=1", "trainer.callbacks is set elsewhere: choose callbacks by callbacks=…"),
        ("trainer.logger=csv", "trainer.logger is set elsewhere: choose loggers by logger=…"),
        ("logger.flush_secs=1", "logger.flush_secs is gone: loggers have names; set logger.tensorboard.fl"),
        ("sweep.space.optimiser.lr=1", "optimiser.lr: no such setting; did you mean optimizer.lr?"),
        ("~data.sampling", "data.sampling is gone: loss.class_weights=enet gives rare classes their weight"),
        (
            "+model.deep_supervision=true",
            "model.deep_supervision is gone: only the finest logits are trained",
        ),
    ],
)
def test_other_keys_are_refused_by_name(override: str, sentence: str) -> None:
    with pytest.raises(CocosegError) as raised:
        check_overrides([override], Config, OPTIONS, [ROOT / "conf"])
    assert str(raised.value).startswith(sentence)


def test_keys_that_only_a_part_of_the_users_own_knows_need_no_plus() -> None:
    own = ["callbacks.mine._target_=x", "logger.csv.name=y", "loss._target_=z", "loss.gamma=1"]
    own += ["schedule._target_=a.b", "schedule.power=2"]
    as_typed = ["-m", "callbacks=early_stopping", "~loss.dice", "+loss.x=1", "model.base_chanels=3", "seed=1"]
    as_typed += ["schedule.warmup=0", "logger.flush_secs=1"]
    forced = force_new_keys([*own, *as_typed], Config)
    assert forced == [
        *(f"++{argument}" for argument in own[:4]), own[4], f"++{own[5]}", *as_typed,
    ]  # fmt: skip


def test_groups_of_a_users_own_search_path_are_left_to_hydra() -> None:
    check_overrides(["hydra.searchpath=[file://elsewhere]", "+theirs=x", "data=theirs"], Config, OPTIONS)


def test_a_prediction_takes_only_its_own_settings() -> None:
    check_overrides(["scale=1", "input=x"], PredictConfig, {})
    with pytest.raises(CocosegError, match=r"^checkpoints: no such setting; did you mean checkpoint\?"):
        check_overrides(["checkpoints=a"], PredictConfig, {}, [ROOT / "conf"])
    with pytest.raises(CocosegError, match=r"^lr: no such setting; --help lists all"):
        check_overrides(["lr=1"], PredictConfig, {}, [ROOT / "conf"])


def test_presets_of_users_that_can_not_be_read_suggest_nothing(tmp_path: Path) -> None:
    for name, content in (("a", "alpha: 1"), ("b", "[unclosed"), ("c", ""), ("d", "- 1")):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / f"{name}.yaml").write_text(content)
    assert preset_arguments([tmp_path], Config)["model.alpha"] == ["a"]


@pytest.mark.parametrize(
    "path",
    [
        "epoch=3-step=20.pth",
        "a (1)/it's, [b] {c}=d\\e $f.pth",
        "a\\'=",
        "C:\\x=\\",
        "a=1,b=2",
        "plain/a b.pth",
    ],
)
def test_paths_that_hydra_can_not_read_are_quoted(path: str) -> None:
    (override,) = quote_paths([f"checkpoint={path}"], EvaluateConfig, in_multirun=False)
    assert OverridesParser.create().parse_override(override).value() == path


def test_the_home_folder_is_put_for_a_tilde() -> None:
    quoted = quote_paths(["data.root=~/a b", "run_dir=~/x,~/y", "images=~/z"], Config, in_multirun=True)
    home = Path.home()
    assert quoted == [f"data.root='{home}/a b'", f"run_dir='{home}/x','{home}/y'", "images=~/z"]


def test_what_hydra_reads_and_what_is_no_path_stays() -> None:
    arguments = [
        "-m",
        "checkpoint=a.pth,b.pth",
        "run_dir='a=b'",
        "optimizer.lr=[1,",
        "data=coco",
        "input=a=b",
    ]
    assert quote_paths(arguments, EvaluateConfig, in_multirun=True) == arguments


def test_paths_of_a_multirun_are_quoted_one_by_one() -> None:
    quoted = quote_paths(["++checkpoint=a=1.pth,b.pth"], EvaluateConfig, in_multirun=True)
    assert quoted == ["++checkpoint='a=1.pth','b.pth'"]
