"""`from_run`: the settings of an earlier run, from a file that may be anybody's."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import cocoseg.cli  # noqa: F401  registers resolvers
from cocoseg.commands.from_run import HARMLESS
from cocoseg.errors import CocosegError
from cocoseg.evaluation.training_settings import keep_places
from conftest import ROOT, SMALL, run_here

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_0.1.0"
MINE = ("data=custom", "data.root=/a", "data.images=/a/photos", "data.annotations=/b/all.json")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


@functools.cache
def resolved(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(composed(*overrides), resolve=True)


def write_run(folder: Path, *overrides: str, **more: Any) -> Path:
    """The folder of a run with these settings."""
    folder.mkdir()
    settings = resolved(*overrides) | more
    (folder / "config.yaml").write_text(f"program: train\n{yaml.safe_dump(settings)}")
    return folder


def test_the_settings_of_the_run_lie_below_what_is_typed(tmp_path: Path):
    own = (*MINE, "model=unet_residual", "optimizer=adamw", "augment=strong", "masks.overlap=smallest")
    more = ("data.labels={pet:[cat,dog]}", "trainer=debug", "+callbacks.a._target_=cocoseg.UNet", "seed=7")
    run = write_run(tmp_path / "11", *own, *more, "trainer.max_epochs=5", "resume=auto", "run_dir=11")
    typed = ("trainer.max_epochs=9", "optimizer.lr=0.5", "model.blocks=3")  # the preset `unet` has no blocks
    config = composed(f"from_run={run}", *typed, "~callbacks.a", "+callbacks.b._target_=my.Own")
    expected = composed(*own, *more, *typed, "~callbacks.a", "+callbacks.b._target_=my.Own")
    assert (config.from_run, config.resume) == (str(run), None)
    for key in expected.keys() - {"from_run", "run_dir"}:
        assert config[key] == expected[key], key
    assert config.run_dir.startswith("outputs/train/")


def test_a_preset_that_is_typed_replaces_that_part_of_the_run(tmp_path: Path):
    run = write_run(tmp_path / "run", "model=unet_residual", "loss=ce_dice", "trainer=cpu", "seed=7")
    config = composed(f"from_run={run}", "model=unet_timm", "trainer=gpu")
    assert config.model == composed("model=unet_timm").model
    assert config.trainer == composed("trainer=gpu").trainer
    assert (config.loss.dice, config.seed) == (1, 7)
    with pytest.raises(CocosegError, match="experiment: both choose all settings"):
        composed(f"from_run={run}", "experiment=demo")


def test_what_stays_with_a_run(tmp_path: Path):
    own = (
        "ckpt_path=/x.ckpt",
        "sweep.method=tpe",
        "sweep.trials=3",
        "logger=none",
        "budget.extend=00:01:00:00",
    )
    run = write_run(tmp_path / "run", *own, "data.download=true", "data.images_url=http://x", "run_dir=/etc")
    config = composed(f"from_run={run}")
    plain = composed(f"from_run={run}", "data=coco", "budget.extend=null")
    for key in ("ckpt_path", "sweep", "logger", "budget", "data", "resume"):
        assert config[key] == plain[key], key
    assert config.run_dir.startswith("outputs/train/")


def test_a_typed_root_moves_what_lay_below_it(tmp_path: Path):
    extra = "data.extra=[{images: /a/more, annotations: /b/more.json, weight: 2},{images: /a/b, masks: /a/c}]"
    run = write_run(tmp_path / "run", *MINE, extra)
    config = composed(f"from_run={run}", "data.root=/new")
    assert (config.data.root, config.data.images, config.data.annotations) == (
        *("/new", "/new/photos", "/b/all.json"),
    )
    assert config.data.extra == [
        {"images": "/new/more", "annotations": "/b/more.json", "weight": 2},
        {"images": "/new/b", "masks": "/new/c"},
    ]
    typed = composed(f"from_run={run}", "data.root=/new", "data.extra=[]")
    assert typed.data.extra == []


def test_each_job_of_a_multirun_has_the_settings_of_its_run(tmp_path: Path):
    runs = [write_run(tmp_path / str(seed), f"seed={seed}") for seed in (5, 6)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", [f"from_run={runs[0]},{runs[1]}"], RunMode.MULTIRUN)
        jobs = [loader.load_sweep_config(config, [f"from_run={run}", "optimizer.lr=1"]) for run in runs]
    assert config.seed == 5  # of the first one, which the checks before the jobs see
    assert [(job.seed, job.optimizer.lr) for job in jobs] == [(5, 1), (6, 1)]
    assert composed().seed == 0


def test_a_run_of_an_earlier_version(caplog: pytest.LogCaptureFixture):
    config = composed(f"from_run={OLD_RUN}")
    assert (config.model._target_, config.model.base_channels) == ("cocoseg.residual.ResidualUNet", 2)
    assert config.data.file_names == "exact"  # a setting that it does not know
    assert "data.sampling" in caplog.text
    assert "deep_supervision" not in config.model
    assert "ema" not in config


# ---- a file of somebody else's

RUNS_CODE = [
    {"_target_": "os.system", "command": "touch x"},
    {"_target_": "torch.hub.load", "repo_or_dir": "a/b"},
    {"_target_": "torch.load", "f": "x"},
    {"_target_": "cocoseg.files.write_bytes", "content": "x"},
    {"_target_": "cocoseg.create_segmentation_masks"},
    {"_target_": "cocoseg.sweeps.launching.subprocess.Popen", "args": "x"},
    {"_target_": "lightning.Trainer", "profiler": {"_target_": "builtins.exec"}},
    {"_target_": "lightning.pytorch.callbacks.callback.os.system"},
    {"b": [{"_target_": "torch.nn.modules.sys.exit"}]},
    {"_target_": ["os.system"]},
    {"_target_": "torch.nn.Linear; touch x"},
]


def test_no_file_chooses_what_is_called(tmp_path: Path):
    callbacks = {f"a{number}": node for number, node in enumerate(RUNS_CODE)}
    run = write_run(tmp_path / "run", callbacks=callbacks, model={"_target_": "my.Net"})
    with pytest.raises(CocosegError, match=r"from_run: no file may choose .*; type it again: ") as error:
        composed(f"from_run={run}", "+callbacks.a0.c=1")  # which says nothing about its target
    asked = shlex.split(str(error.value).partition("type it again: ")[2])
    assert asked[-1] == "model._target_=my.Net"
    assert {key.split(".")[1].split("=")[0] for key in asked[:-1]} == callbacks.keys()
    assert "callbacks.a10._target_=torch.nn.Linear; touch x" in asked  # one word for a shell


@pytest.mark.parametrize(
    "typed",
    [
        ("callbacks.a._target_=my.Own",),
        ("++callbacks.a._target_=my.Own",),
        ("+callbacks.a={_target_:my.Own}",),
        ("~callbacks.a",),
        ("callbacks={}",),
    ],
)
def test_what_is_typed_again_is_called(tmp_path: Path, typed: tuple[str, ...]):
    run = write_run(tmp_path / "run", callbacks={"a": {"_target_": "my.Own", "b": 2}})
    config = composed(f"from_run={run}", *typed)
    assert config.callbacks in ({"a": {"_target_": "my.Own", "b": 2}}, {})


def test_a_run_without_annotation_file_has_no_prepared_folder():
    config = composed("data=custom", "data.prepared_dir=/a")  # as with a data set of one's own
    keep_places(config, [])
    assert config.data.prepared_dir is None


def test_the_presets_can_be_taken_from_a_run():
    conf = ROOT / "conf"
    presets = [path for path in conf.rglob("*.yaml") if "hydra" not in path.relative_to(conf).parts]
    named = set(re.findall(r"^\s*_target_: (\S+)", "\n".join(path.read_text() for path in presets), re.M))
    ours = {name for name in named if name.split(".")[0] in ("cocoseg", "torch", "torchvision", "lightning")}
    not_taken = {"cocoseg.run_folder.MakeFolder", "cocoseg.sweeps.multirun.MultirunInOrder"}
    not_taken |= {name for name in ours if "Logger" in name}
    assert {name for name in ours if not HARMLESS.fullmatch(name)} == not_taken


def test_no_file_chooses_where_to_write(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    keep = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/etc", "every_n_epochs": 2}
    run = write_run(tmp_path / "run", callbacks={"a": keep})
    assert composed(f"from_run={run}").callbacks.a == {**keep, "dirpath": None}
    assert "callbacks.a.dirpath: no file may choose a place to write to" in caplog.text
    assert composed(f"from_run={run}", "callbacks.a.dirpath=here").callbacks.a.dirpath == "here"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not the folder of a training"),
        ("seed: 0\n", "is not the folder of a training"),
        ("program: evaluate\nseed: 0\ndata: {}\nmasks: {}\n", "is not the folder of a training"),
        ("seed: ${oc.env:HOME}\ndata: {}\nmasks: {}\n", "it holds an interpolation"),
        ("seed: 0\ndata: {}\nmasks: {}\nunheard_of: 1\n", r"config.yaml: unheard_of: no such setting"),
        ("seed: 0\ndata: {x: 1}\nmasks: {}\n", r"config.yaml: data.x: no such setting"),
        ("seed: 0\ndata: {}\nmasks: {}\n1: 2\n", "config.yaml: "),
        ("seed: 0\ndata: {}\nmasks: {}\nbudget: 2\n", "config.yaml: budget is 2"),
        ("seed: 0\ndata: {}\nmasks: {}\nmodel: {a: 2020-01-01}\n", "config.yaml: "),
        ("seed: []\ndata: {}\nmasks: {}\n", r"config.yaml: seed is \[\]"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str | None, sentence: str):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CocosegError, match=sentence):
        composed(f"from_run={tmp_path}")


def test_the_folder_of_a_sweep_is_not_that_of_a_run(tmp_path: Path):
    write_run(tmp_path / "0")
    with pytest.raises(CocosegError, match=rf"name one of its runs, as in from_run={tmp_path}/0$"):
        composed(f"from_run={tmp_path}")


# ---- as a user


def test_the_line_below_the_leaderboard_trains_the_best_run_longer(tmp_path: Path):
    swept = ("trainer.max_steps=2", "optimizer.lr=0.001,0.002", "seed=3", "hydra.sweep.dir=a sweep")
    done = run_here("train", "-m", *SMALL, *swept, cwd=tmp_path)
    label, _, line = done.stdout.splitlines()[-1].partition(": ")
    best = done.stdout.split("leaderboard  ")[0].strip().splitlines()[-2].split()[0]
    overrides = shlex.split(line)[2:]
    assert (label, overrides) == (
        "train it longer",
        [f"from_run='a sweep/{best}'", "trainer.max_time=6h", "trainer.max_steps=-1"],
    )
    done = run_here("train", *overrides, "trainer.max_steps=3", cwd=tmp_path)  # the later one counts
    assert not done.returncode, done.stderr
    (run,) = (tmp_path / "outputs/train").iterdir()
    new, old = (OmegaConf.load(folder / "config.yaml") for folder in (run, tmp_path / "a sweep" / best))
    assert (new.trainer.pop("max_steps"), old.trainer.pop("max_steps")) == (3, 2)
    assert (new.trainer.pop("max_time"), old.trainer.pop("max_time")) == ("6h", None)
    assert new.optimizer.lr == (0.001, 0.002)[int(best)]
    assert new.data.pop("shapes") is None  # they are drawn
    old.data.pop("shapes")
    assert {key for key in new if new[key] != old[key]} == {"run_dir", "from_run"}
