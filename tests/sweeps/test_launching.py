"""Processes side by side, played by one-line programs, and real jobs in them."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import cocoseg.sweeps.launching
from cocoseg.errors import CocosegError
from cocoseg.run_folder import FAILED, FINISHED, STOPPED, Outcome
from cocoseg.sweeps.launching import (
    OUTPUT,
    Job,
    count_side_by_side,
    job_return,
    launch,
    run_jobs,
    visible_gpus,
)
from conftest import ROOT, SMALL


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs jobs that are such a program, with their folder as its argument. Returns them as they ended."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = OmegaConf.create({"hydra": {"job": {"override_dirname": "x=1", "name": "train"}}})

    def run(program: str, count: int, side_by_side: int, received: list | None = None) -> list[Job]:
        (tmp_path / "program.py").write_text("import os, signal, sys, time\n" + textwrap.dedent(program))
        monkeypatch.setattr(
            cocoseg.sweeps.launching,
            "command",
            lambda job: [sys.executable, str(tmp_path / "program.py"), str(job.folder)],
        )
        jobs = [Job(number, ["x=1"], config, tmp_path / str(number)) for number in range(count)]
        return list(run_jobs(jobs, side_by_side, [] if received is None else received))

    return run


def said(job: Job) -> list[str]:
    return (job.folder / OUTPUT).read_text().split()


def test_so_many_at_a_time_and_each_in_its_own_process(play):
    jobs = play("print(os.getpid(), time.time()); time.sleep(0.3); print(time.time())", 4, 2)
    spans = [tuple(map(float, said(job)[1:])) for job in jobs]
    assert len({said(job)[0] for job in jobs}) == 4
    for begin, _ in spans:
        assert sum(other[0] <= begin < other[1] for other in spans) <= 2
    assert {job.slot for job in jobs} == {0, 1}


@pytest.mark.parametrize(
    ("gpus", "count", "side_by_side", "expected"),
    [
        ("3,GPU-7", 6, 3, {(0, "3"), (1, "GPU-7"), (2, "3")}),  # in turn
        ("0,1,2,3", 2, 2, {(0, "0,2"), (1, "1,3")}),  # divided
        ("0,1,2,3", 1, 2, {(0, "0,2")}),  # the last job of a sweep has as many as the others had
    ],
)
def test_gpus_are_shared(play, monkeypatch: pytest.MonkeyPatch, gpus: str, count, side_by_side, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    jobs = play("print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)", count, side_by_side)
    assert {(job.slot, *said(job)) for job in jobs} == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize(
    "threads",
    [
        "len(os.sched_getaffinity(0))",
        pytest.param("__import__('torch').get_num_threads()", marks=pytest.mark.slow),
    ],
)
def test_cores_are_divided(play, monkeypatch: pytest.MonkeyPatch, threads: str):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = len(os.sched_getaffinity(0))
    jobs = play(f"time.sleep(0.3); print({threads}, *os.sched_getaffinity(0))", 2, count)
    assert [said(job)[0] for job in jobs] == ["1", "1"]
    if count > 1:
        assert said(jobs[0])[1:] != said(jobs[1])[1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_no_further_job_begins(play, tmp_path: Path, number: signal.Signals):
    program = """
        def leave(number, frame):
            print("received", number)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        print("begun", flush=True)
        time.sleep(600)
    """
    handlers, received = signal.getsignal(number), []

    def send_when_begun() -> None:
        while not all(path.exists() and path.read_text() for path in outputs):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    outputs = [tmp_path / str(job) / OUTPUT for job in range(2)]
    sender = threading.Thread(target=send_when_begun, daemon=True)
    sender.start()
    ended = play(program, 3, 2, received)
    assert received == [number]
    assert sorted(job.number for job in ended) == [0, 1]
    assert {tuple(said(job)) for job in ended} == {("begun", "received", str(int(number)))}
    assert not (tmp_path / "2").exists()
    assert signal.getsignal(number) is handlers


def test_a_signal_that_comes_while_a_job_begins_reaches_it(play, monkeypatch: pytest.MonkeyPatch):
    begin = subprocess.Popen

    def begin_and_receive(*args: object, **options: object) -> subprocess.Popen:
        process = begin(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(cocoseg.sweeps.launching.subprocess, "Popen", begin_and_receive)
    (job,) = play("time.sleep(600)", 2, 1)
    assert job.process.returncode == -signal.SIGTERM


def test_a_job_that_is_stopped_before_it_listens_has_not_failed(play):
    (job,) = play("os.kill(os.getpid(), signal.SIGTERM)", 1, 1)
    result = job_return(job, was_stopped=True)
    assert result.status.name == "FAILED"  # for Hydra, which knows nothing between
    assert Outcome.read(job.folder) is None
    assert job_return(job, was_stopped=False).status.name == "FAILED"
    assert Outcome.read(job.folder).state == FAILED  # nobody else has ended it


def test_how_jobs_ended(play, tmp_path: Path):
    program = """
        number = sys.argv[1][-1]
        if number == "1":
            sys.exit("error: no")
        if number == "2":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    Outcome(FINISHED, miou=0.5).write(tmp_path / "0")
    Outcome(FAILED, "no").write(tmp_path / "1")
    results = {job.number: job_return(job, was_stopped=False) for job in play(program, 4, 4)}
    states = [results[number].status.name for number in range(4)]
    assert states == ["COMPLETED", "FAILED", "FAILED", "COMPLETED"]
    assert results[0].return_value == 0.5
    assert results[3].return_value is None
    with pytest.raises(CocosegError, match=r"^no$"):
        _ = results[1].return_value
    outcome = Outcome.read(tmp_path / "2")
    assert outcome.state == FAILED
    assert outcome.reason.startswith("ended by SIGKILL, see ")


def test_an_error_of_ours_leaves_no_process(play, monkeypatch: pytest.MonkeyPatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def fail(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(cocoseg.sweeps.launching.subprocess, "Popen", Noted)
        patch.setattr(cocoseg.sweeps.launching.time, "sleep", fail)  # when both have begun
        with pytest.raises(RuntimeError):
            play("time.sleep(600)", 2, 2)
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGKILL] * 2


def test_commands_name_folder_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def record(jobs, side_by_side, received):
        for job in jobs:
            commands.append(cocoseg.sweeps.launching.command(job))
            job.process = subprocess.Popen(["true"])
            job.process.wait()
            yield job

    monkeypatch.setattr(cocoseg.sweeps.launching, "run_jobs", record)
    monkeypatch.setattr(cocoseg.sweeps.launching, "configure_log", lambda *_: None)  # it holds for all tests
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "mine", "-cn=train", "seed=1,2"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    from hydra.core.global_hydra import GlobalHydra

    escaped = rf"{tmp_path}/a \"b\""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ['hydra.sweep.dir="' + escaped + '"', "hydra.mode=MULTIRUN", "hydra.verbose=false"]
        config = compose("train", overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        given = [["seed=1"], ["seed=2", "hydra.sweep.subdir=x"], ["sweep.trial=9", "hydra.sweep.subdir=9"]]
        launch(config, loader, given, 4, 2)
    first, second, trial = commands
    assert first[:5] == [sys.executable, "train.py", "--config-dir=mine", "--config-name=train", "seed=1"]
    assert "hydra.mode=RUN" in first
    assert "hydra.mode=MULTIRUN" not in first
    assert "hydra.verbose=false" in first
    assert "hydra.job.num=4" in first
    assert f'hydra.run.dir="{escaped}/4"' in first
    assert f'hydra.run.dir="{escaped}/x"' in second
    assert "hydra.job.num=9" in trial  # trials that are resumed side by side need not be consecutive


@pytest.mark.parametrize(
    ("visible", "n_jobs", "expected"),
    [("", None, 1), ("-1", None, 1), ("0,1", None, 2), ("0,1", 1, 1), ("", 3, 3)],
)
def test_how_many_side_by_side(monkeypatch: pytest.MonkeyPatch, visible: str, n_jobs, expected: int):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_side_by_side(n_jobs) == expected


def test_gpus_are_listed_where_none_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: GPU-1)'\necho '  MIG 1'\necho 'GPU 1: two'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ["0", "1"]
    program.unlink()
    assert visible_gpus() == []


# ---- real jobs


def states(sweep: Path) -> dict[str, str]:
    with (sweep / "leaderboard.csv").open() as file:
        return {line["job"]: line["state"] for line in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_orphans(tmp_path: Path, number: signal.Signals):
    """Killed outright the launcher passes nothing on; its jobs see that it is gone, and stop in order."""
    local = ("hydra/launcher=local", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep")
    overrides = (*SMALL, *local, "seed=1,2,3", "trainer.max_steps=100000")
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "-m", *overrides], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("sweep/*/checkpoints/last.ckpt"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=90) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    folders = [tmp_path / "sweep" / job for job in "01"]
    while not all(Outcome.read(folder) for folder in folders):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    for folder in folders:
        assert Outcome.read(folder).state == STOPPED
        assert (folder / "segmentation_model.pth").exists()
    assert not (tmp_path / "sweep/2/config.yaml").exists()
    if number == signal.SIGTERM:
        assert states(tmp_path / "sweep") == {"0": "stopped", "1": "stopped"}
