"""Sweeps from the command line, with real jobs."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import cocoseg.cli  # noqa: F401  registers resolvers
from cocoseg.overrides import sweep_folder
from cocoseg.sweeps.launching import OUTPUT
from cocoseg.sweeps.study import open_storage
from conftest import ROOT, SMALL, run_here, run_program

CONF = str(ROOT / "conf")
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def rows(sweep: Path) -> dict[str, dict[str, str]]:
    with (sweep / "leaderboard.csv").open() as file:
        return {line["job"]: line for line in csv.DictReader(file)}


# ---- presets


@pytest.mark.parametrize("method", ["tpe", "random", "grid"])
def test_presets(method: str):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [f"sweep={method}", "seed=5"], return_hydra_config=True)
    assert config.sweep.method == method
    assert config.hydra.sweeper._target_ == "hydra_plugins.cocoseg.plugins.CocosegSweeper"
    assert config.hydra.mode.name == "MULTIRUN"
    assert Path(config.hydra.sweep.dir).parent == Path("outputs/multirun")
    assert Path(config.hydra.sweep.dir).name.startswith(f"{method}_")


def test_folders_of_sweeps():
    same = ["seed=1", "sweep.total_time=x", "sweep=tpe"]
    one = sweep_folder("tpe", None, ["sweep=tpe", "seed=1", "sweep.trials=5"])
    assert one == sweep_folder("tpe", None, [*same, "sweep.trials=9", "budget.until=x"])
    assert one != sweep_folder("tpe", None, ["sweep=tpe", "seed=2"])
    assert sweep_folder("tpe", "mine", ["seed=2"]) == "mine"


def test_slurm_jobs_have_the_time_of_their_training(tmp_path: Path):
    """The script that would be handed to sbatch."""
    from submitit.slurm.slurm import _make_sbatch_string

    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = ["hydra/launcher=submitit_slurm", "trainer.max_time=00:06:00:00", "hydra.job.name=train"]
        config = compose("train", overrides, return_hydra_config=True)
    launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert launcher["timeout_min"] == 370
    own = (
        "_target_",
        "submitit_folder",
        "timeout_min",
        "max_num_timeout",
        "tasks_per_node",
        "mem_gb",
        "name",
    )
    rest = {key: value for key, value in launcher.items() if key not in own}
    script = _make_sbatch_string(
        "python", tmp_path, job_name=launcher["name"], time=launcher["timeout_min"],
        ntasks_per_node=launcher["tasks_per_node"], mem=f"{launcher['mem_gb']}GB", map_count=3, **rest,
    )  # fmt: skip
    lines = script.splitlines()
    assert "#SBATCH --time=370" in lines
    assert "#SBATCH --gpus-per-node=1" in lines
    assert "#SBATCH --signal=USR2@120" in lines
    assert "#SBATCH --open-mode=append" in lines
    assert "#SBATCH --job-name=train" in lines
    assert "#SBATCH --array=0-2%3" in lines


def test_slurm_jobs_have_the_time_of_their_trial(monkeypatch: pytest.MonkeyPatch):
    """The limit of a trial that follows from that of the sweep, 90 s, and ten minutes."""
    from hydra.core.plugins import Plugins

    from hydra_plugins.cocoseg.plugins import CocosegSweeper

    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = ["sweep=tpe", "hydra/launcher=submitit_slurm", "sweep.name=x"]
        config = compose("train", overrides, return_hydra_config=True)
    started = []

    class Launcher:
        def launch(self, jobs, initial_job_idx):
            started.append((jobs, initial_job_idx, config.hydra.launcher.timeout_min))

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Launcher())
    sweeper = CocosegSweeper()
    sweeper.setup(hydra_context=None, task_function=None, config=config)
    sweeper.launch([["seed=1"]], 3, 90.0)
    assert started == [([["seed=1"]], 3, 12)]


def test_the_preset_has_all_of_the_plugins_settings():
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    preset = OmegaConf.load(ROOT / "conf/hydra/launcher/submitit_slurm.yaml")
    plugin = OmegaConf.structured(SlurmQueueConf)
    assert set(preset) == {*plugin, "exclude"}
    assert preset._target_ == plugin._target_


@pytest.mark.slow
def test_what_slurm_starts_once_more_goes_on(tmp_path: Path):
    command = ("train", *SMALL, "run_dir=run")
    first = run_program(*command, "trainer.max_steps=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    refused = run_program(*command, "trainer.max_steps=4", cwd=tmp_path, SLURM_RESTART_COUNT="0")
    assert refused.returncode == 2
    again = run_program(*command, "trainer.max_steps=4", cwd=tmp_path, SLURM_RESTART_COUNT="1")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run/outcome.json").read_bytes())["steps"] == 4


# ---- mistakes


@pytest.fixture
def without(tmp_path: Path):
    """An environment in which a package is missing."""

    def environment(package: str) -> dict[str, str]:
        folder = tmp_path / "poison"
        folder.mkdir()
        (folder / f"{package}.py").write_text("raise ImportError('missing')\n")
        return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}

    return environment


@pytest.mark.slow
def test_without_optuna_only_its_sweeps_fail(without, tmp_path: Path):
    environment = without("optuna")
    done = run_program("train", "--help", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_program("train", "sweep=tpe", "sweep.trials=2", *SMALL, LR, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: sweep: Optuna is not installed; pip install 'optuna>=5,<6'"


def test_a_mistake_ends_with_one_line_and_leaves_nothing_behind(tmp_path: Path):
    done = run_here("train", *SMALL, "sweep=tpe", LR, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: sweep: give sweep.trials, or both ")
    assert list(tmp_path.iterdir()) == []


# ---- sweeps


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on_with_the_same_command(tmp_path: Path):
    command = [
        sys.executable, str(ROOT / "train.py"), "sweep=tpe", "sweep.trials=3", *SMALL, LR,
        "trainer.max_steps=4000", "trainer.check_val_every_n_epoch=1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/multirun/tpe_*/0/checkpoints/best.ckpt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (sweep,) = tmp_path.glob("outputs/multirun/tpe_*")
    assert {job: row["state"] for job, row in rows(sweep).items()} == {"0": "stopped"}
    told = (sweep / "0/.hydra/overrides.yaml").read_text().splitlines()
    (rate,) = (line.partition("=")[2] for line in told if line.startswith("- optimizer.lr="))

    command[command.index("trainer.max_steps=4000")] = "trainer.max_steps=4"  # not the same: another folder
    other = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert other.returncode == 0, other.stderr
    again = subprocess.run(
        [*command, f"sweep.name={sweep.name}"], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
    table = rows(sweep)
    assert {job: row["state"] for job, row in table.items()} == dict.fromkeys("012", "finished")
    assert table["0"]["optimizer.lr"] == rate
    study = optuna.load_study(study_name=sweep.name, storage=open_storage(sweep))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    for trial in study.trials:
        assert trial.value == pytest.approx(float(table[str(trial.number)]["miou"]))
        assert float(table[str(trial.number)]["optimizer.lr"]) == pytest.approx(
            trial.params["optimizer.lr"], rel=1e-5
        )


@pytest.mark.slow
def test_a_second_process_is_refused_before_it_writes_anything(tmp_path: Path):
    folder = tmp_path / "outputs/multirun/owned"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        done = run_program(
            "train", "sweep=random", "sweep.trials=1", "sweep.name=owned", *SMALL, LR, cwd=tmp_path
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: sweep.name, hydra.sweep.dir: another process writes to outputs/multirun/")
    assert [file.name for file in folder.iterdir()] == [".lock"]


@pytest.mark.slow
def test_a_sweep_keeps_its_time(tmp_path: Path):
    limited = [item for item in SMALL if not item.startswith("trainer.max_time")]
    done = run_program(
        "train", "sweep=tpe", "sweep.trials=3", "sweep.total_time=00:00:01:30", *limited, LR, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (sweep,) = tmp_path.glob("outputs/multirun/tpe_*")
    ledger = json.loads((sweep / "sweep.json").read_bytes())
    assert ledger["used"] <= 90
    assert len(rows(sweep)) >= 3
    limits = {json.loads((sweep / job / "budget.json").read_bytes())["limit"] for job in rows(sweep)}
    assert max(limits) > 20
    assert min(limits) > 0.9 * max(limits)


@pytest.mark.slow
def test_submitits_local_executor(tmp_path: Path):
    done = run_program(
        "train", "-m", *SMALL, "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep",
        "trainer.max_steps=2", "seed=1,2,3", "trainer.accelerator=cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "sweep")
    assert {job: row["state"] for job, row in table.items()} == dict.fromkeys("012", "finished")
    assert {row["seed"] for row in table.values()} == {"1", "2", "3"}


@pytest.mark.slow
def test_trials_side_by_side(tmp_path: Path):
    """In processes of their own, one of which fails."""
    run_program("prepare", *SMALL, cwd=tmp_path)
    done = run_program(
        "train", "sweep=grid", "sweep.name=side", "hydra/launcher=local", "hydra.launcher.n_jobs=2", *SMALL,
        "trainer.max_steps=2", "optimizer.lr=1e-3,-1,1e-2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    sweep = tmp_path / "outputs/multirun/side"
    assert {job: row["state"] for job, row in rows(sweep).items()} == {
        "0": "finished", "1": "failed", "2": "finished",
    }  # fmt: skip
    assert done.stderr.splitlines()[-2:] == [
        "failed: 1",
        "  outputs/multirun/side/1: " + rows(sweep)["1"]["reason"],
    ]
    study = optuna.load_study(study_name="side", storage=open_storage(sweep))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "training on" not in done.stdout
    assert "training on" in (sweep / "0" / OUTPUT).read_text()
    hydra = OmegaConf.load(sweep / "2/.hydra/hydra.yaml").hydra
    assert (hydra.job.num, hydra.runtime.output_dir, hydra.mode) == (2, str(sweep / "2"), "RUN")
