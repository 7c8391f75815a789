"""Multiruns: signals end them in order, no job leaves anything to the next."""

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import cocoseg.files
from cocoseg.files import locked
from cocoseg.sweeps.multirun import MultirunInOrder, forget_frames, isolate_job
from conftest import SMALL, run_here, run_program

CALLBACKS = """
import gc, json, logging, os, resource, signal, threading, lightning, torch

class Send(lightning.Callback):
    def __init__(self, number, hook):
        self.number = number
        setattr(self, hook, self.send)
        if hook == "__init__":
            self.send()
    def send(self, *_):
        os.kill(os.getpid(), self.number)

class Count(lightning.Callback):
    def on_fit_start(self, trainer, module):
        objects = gc.get_objects()
        now = {
            "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "handlers": len(logging.getLogger().handlers),
            "networks": sum(isinstance(thing, torch.nn.Module) for thing in objects),
            "trainers": sum(isinstance(thing, lightning.Trainer) for thing in objects),
            "objects": len(objects),
            "megabytes": int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20,
            "environment": len(os.environ),
            "random": float(torch.rand(())),
        }
        with open(os.environ["COUNTS"], "a") as file:
            file.write(json.dumps(now) + "\\n")
"""


@pytest.fixture
def multirun(tmp_path: Path):
    (tmp_path / "callbacks.py").write_text(CALLBACKS)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        places = {"PYTHONPATH": path, "COUNTS": str(tmp_path / "counts")}
        return run_program("train", "-m", *SMALL, *overrides, "hydra.sweep.dir=sweep", cwd=tmp_path, **places)

    return run


def table(sweep: Path) -> dict[str, dict[str, str]]:
    with (sweep / "leaderboard.csv").open() as file:
        return {line["job"]: line for line in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "hook", "code"),
    [
        (signal.SIGTERM, "on_train_epoch_end", 143),
        (signal.SIGUSR1, "on_train_epoch_end", 0),
    ],
)
def test_a_signal_ends_the_multirun_and_keeps_what_is_done(multirun, tmp_path: Path, number, hook, code: int):
    """The second job is stopped in order, the third never begins."""
    sends = ("+callbacks.send._target_=callbacks.Send", f"+callbacks.send.number={int(number)}")
    hooks = f"+callbacks.send.hook=on_fit_end,{hook},on_fit_end"
    done = multirun(
        *sends, hooks.replace("on_fit_end", "never"), "trainer.max_epochs=3", "trainer.max_steps=6"
    )
    # Two of the hooks are equal: Hydra makes three jobs of them all the same.
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = table(tmp_path / "sweep")
    assert {job: row["state"] for job, row in rows.items()} == {"0": "finished", "1": "stopped"}
    assert rows["1"]["reason"] == number.name
    assert (tmp_path / "sweep/1/segmentation_model.pth").exists()
    *_, table_line, longer = done.stdout.rstrip().splitlines()
    assert table_line == "leaderboard  sweep/leaderboard.csv"
    assert longer.startswith("train it longer: ")


@pytest.mark.slow
def test_a_signal_outside_of_training_ends_the_multirun(multirun, tmp_path: Path):
    """Callbacks are made when nobody listens yet."""
    sends = ("+callbacks.send._target_=callbacks.Send", f"+callbacks.send.number={int(signal.SIGTERM)}")
    done = multirun(*sends, "+callbacks.send.hook=__init__", "trainer.max_steps=2", "seed=1,2")
    assert done.returncode == 143, done.stderr
    assert {job: row["state"] for job, row in table(tmp_path / "sweep").items()} == {"0": "stopped"}


@pytest.mark.slow
def test_failed_jobs_are_in_the_table(multirun, tmp_path: Path):
    done = multirun("trainer.max_steps=2", "data.batch_size=0,4", "optimizer.lr=-1,1e-3")
    assert done.returncode == 1
    rows = table(tmp_path / "sweep")
    assert {job: row["state"] for job, row in rows.items()} == {
        "0": "failed", "1": "failed", "2": "failed", "3": "finished",
    }  # fmt: skip
    assert rows["0"]["reason"].startswith("data.batch_size is 0")
    assert "Invalid learning rate" in rows["2"]["reason"]


@pytest.mark.slow
def test_nothing_leaks_over_twenty_jobs(multirun, tmp_path: Path):
    """A failing one among them, and one that switches what holds for the whole process."""
    switched = ",".join(["false"] * 10 + ["true"] + ["false"] * 9)
    done = multirun(
        "trainer.max_steps=2",
        "seed=7",
        "+callbacks.count._target_=callbacks.Count",
        f"trainer.deterministic={switched}",
    )
    assert done.returncode == 0, done.stderr
    counts = [json.loads(line) for line in (tmp_path / "counts").read_text().splitlines()]
    assert len(counts) == 20
    early, late = counts[2], counts[-1]
    for name in ("files", "threads", "handlers", "networks", "trainers", "environment"):
        assert late[name] <= early[name], (name, [count[name] for count in counts])
    assert late["objects"] < 1.1 * early["objects"]
    assert late["megabytes"] < early["megabytes"] + 40, [count["megabytes"] for count in counts]
    assert len({count["random"] for count in counts}) == 1
    scores = {(tmp_path / f"sweep/{job}/metrics.json").read_bytes() for job in range(20)}
    assert len(scores) == 1
    logs = [(tmp_path / f"sweep/{job}/train.log").read_text() for job in range(20)]
    assert all(log.count("training on") == 1 for log in logs)
    assert all(f"sweep/{job}/segmentation_model.pth" in log for job, log in enumerate(logs))


def test_a_second_process_on_a_sweep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cocoseg.files, "LOCK_TIMEOUT", 0.1)
    folder = tmp_path / "sweep"
    launcher = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "launcher": launcher}})
    with locked(folder, key="sweep.name"), pytest.raises(SystemExit) as ended:
        MultirunInOrder().on_multirun_start(config)
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: sweep.name, hydra.sweep.dir: another process writes to {folder}; "
        "wait for it, or name another folder\n"
    )
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_job_that_fails_before_its_run_begins_is_in_the_table(tmp_path: Path):
    job = ("data.batch_size=0", "hydra/launcher=local", "hydra.sweep.dir=sweep")
    done = run_here("train", "-m", *SMALL, *job, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    rows = table(tmp_path / "sweep")
    assert {job: row["state"] for job, row in rows.items()} == {"0": "failed"}
    assert rows["0"]["reason"].startswith("data.batch_size is 0; it must be ")
    assert done.stderr.splitlines()[-1].endswith(rows["0"]["reason"])


@pytest.mark.parametrize("earlier", [False, True])
def test_a_job_restores_what_holds_for_the_whole_process(earlier: bool, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", earlier)
    try:
        torch.use_deterministic_algorithms(earlier, warn_only=earlier)
        with isolate_job():
            os.environ["OF_THE_JOB"] = "1"
            torch.use_deterministic_algorithms(not earlier)
            torch.backends.cudnn.benchmark = not earlier
        assert "OF_THE_JOB" not in os.environ
        assert torch.are_deterministic_algorithms_enabled() == earlier
        assert torch.is_deterministic_algorithms_warn_only_enabled() == earlier
        assert torch.backends.cudnn.benchmark == earlier
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_kept_error_keeps_no_tensors():
    import weakref

    import torch

    kept = []

    def fail() -> None:
        weights = torch.zeros(3)
        kept.append(weakref.ref(weights))
        raise ValueError("no")

    try:
        try:
            fail()
        except ValueError:
            raise KeyError("outer") from None
    except KeyError as error:
        outer = error
    assert kept[0]() is not None
    forget_frames(outer)
    assert kept[0]() is None
