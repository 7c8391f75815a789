"""Processes side by side, played by one-line programs, and real jobs in them."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import cocoseg.sweeps.launching
from cocoseg.run_folder import FAILED, FINISHED, STOPPED, Outcome
from cocoseg.sweeps.launching import (
    OUTPUT,
    Job,
    Pool,
    _to_return,
    count_side_by_side,
    launch,
    visible_gpus,
)
from conftest import ROOT, SMALL


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a pool of jobs that run such a program, with their folder as its argument."""
    config = OmegaConf.create({"hydra": {"job": {"override_dirname": "x=1", "name": "train"}}})

    def make(program: str, jobs: int, side_by_side: int) -> Pool:
        (tmp_path / "program.py").write_text("import os, signal, sys, time\n" + textwrap.dedent(program))
        monkeypatch.setattr(
            cocoseg.sweeps.launching,
            "command",
            lambda job: [sys.executable, str(tmp_path / "program.py"), str(job.folder)],
        )
        monkeypatch.setattr(cocoseg.sweeps.launching, "remember_failure", lambda *_: None)
        numbered = [Job(number, ["x=1"], config, tmp_path / str(number)) for number in range(jobs)]
        return Pool(numbered, side_by_side)

    return make


def said(job: Job) -> list[str]:
    return (job.folder / OUTPUT).read_text().split()


def test_so_many_at_a_time_and_each_in_its_own_process(pool):
    jobs = list(pool("print(os.getpid(), time.time()); time.sleep(0.3); print(time.time())", 4, 2).run())
    spans = [tuple(map(float, said(job)[1:])) for job in jobs]
    assert len({said(job)[0] for job in jobs}) == 4
    for begin, _ in spans:
        assert sum(other[0] <= begin < other[1] for other in spans) <= 2
    assert {job.slot for job in jobs} == {0, 1}


def test_gpus_are_handed_out_in_turn(pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    jobs = list(pool("print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)", 6, 3).run())
    assert {(job.slot, *said(job)) for job in jobs} == {(0, "3"), (1, "GPU-7"), (2, "3")}


@pytest.mark.parametrize("jobs", [2, 1])
def test_gpus_that_outnumber_the_jobs_are_divided(pool, monkeypatch: pytest.MonkeyPatch, jobs: int):
    """A single last job of a sweep has as many as the others had."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    ended = list(pool("print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)", jobs, 2).run())
    assert {(job.slot, *said(job)) for job in ended} == {(0, "0,2"), (1, "1,3")} - {(jobs, "1,3")}


def test_several_processes_of_a_job_divide_its_cores_themselves(pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = pool("print(os.environ.get('OMP_NUM_THREADS'))", 1, 1)
    made.jobs[0].config.trainer = {"devices": [0, 1]}
    assert said(*made.run()) == ["None"]
    made.jobs[0].config.trainer = {"devices": [0]}
    assert said(*made.run())[-1].isdigit()


def test_cores_are_divided(pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cocoseg.sweeps.launching, "available_cores", lambda: 8)
    program = "time.sleep(0.3); print(os.environ['OMP_NUM_THREADS'], *os.sched_getaffinity(0))"
    jobs = list(pool(program, 2, 2).run())
    assert {said(job)[0] for job in jobs} == {"4"}
    if len(os.sched_getaffinity(0)) > 1:
        assert set(said(jobs[0])[1:]).isdisjoint(said(jobs[1])[1:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_no_further_job_begins(pool, number: signal.Signals):
    program = """
        def leave(number, frame):
            print("received", number)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGINT, leave)
        print("begun", flush=True)
        time.sleep(60)
    """
    made = pool(program, 3, 2)
    running = made.run()
    handlers = signal.getsignal(number)

    def send(*_: object) -> None:
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGALRM, send)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    ended = list(running)
    assert made.received == number
    assert sorted(job.number for job in ended) == [0, 1]
    assert {tuple(said(job)) for job in ended} == {("begun", "received", str(int(number)))}
    assert not (made.jobs[2].folder / OUTPUT).exists()
    assert signal.getsignal(number) is handlers


def test_a_second_signal_ends_jobs_that_do_not_listen(pool):
    made = pool("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('begun'); time.sleep(60)", 1, 1)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 1.0, 0.5)
    try:
        (job,) = made.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert job.process.returncode == -signal.SIGKILL


def test_a_signal_that_comes_while_a_job_begins_reaches_it(pool, monkeypatch: pytest.MonkeyPatch):
    made = pool("time.sleep(60)", 2, 1)
    begin = subprocess.Popen

    def begin_and_receive(*args: object, **options: object) -> subprocess.Popen:
        process = begin(*args, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(cocoseg.sweeps.launching.subprocess, "Popen", begin_and_receive)
    (job,) = made.run()
    assert job.process.returncode == -signal.SIGTERM


def test_a_job_that_is_stopped_before_it_listens_has_not_failed(pool):
    made = pool("os.kill(os.getpid(), signal.SIGTERM)", 1, 1)
    (job,) = made.run()
    result = _to_return(job, signal.SIGTERM)
    assert result.status.name == "FAILED"  # for Hydra, which knows nothing between
    assert Outcome.read(job.folder) is None
    assert _to_return(job).status.name == "FAILED"
    assert Outcome.read(job.folder).state == FAILED  # nobody else has ended it


def test_how_jobs_ended(pool, capsys: pytest.CaptureFixture[str]):
    program = """
        number = sys.argv[1][-1]
        if number == "1":
            sys.exit("error: no")
        if number == "2":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    made = pool(program, 4, 4)
    for job in made.jobs:
        job.folder.mkdir()
    Outcome(FINISHED, miou=0.5).write(made.jobs[0].folder)
    Outcome(FAILED, "no").write(made.jobs[1].folder)
    results = {job.number: _to_return(job) for job in made.run()}
    assert [results[number].status.name for number in range(4)] == [
        "COMPLETED",
        "FAILED",
        "FAILED",
        "COMPLETED",
    ]
    assert results[0].return_value == 0.5
    assert results[3].return_value is None
    with pytest.raises(Exception, match="error: no"):
        _ = results[1].return_value
    outcome = Outcome.read(made.jobs[2].folder)
    assert outcome.state == FAILED
    assert outcome.reason.startswith("ended by SIGKILL, see ")


def test_an_error_of_ours_leaves_no_process(pool):
    made = pool("time.sleep(60)", 2, 2)
    running = made.run()
    made.jobs[1].process = None

    def fail(*_: object) -> None:
        raise RuntimeError

    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    with pytest.raises(RuntimeError):
        next(running)
    for job in made.jobs:
        assert job.process.wait(timeout=10) == -signal.SIGKILL


def test_commands_name_folder_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []

    class Recorded(Pool):
        def run(self):
            commands.extend(cocoseg.sweeps.launching.command(job) for job in self.jobs)
            for job in self.jobs:
                job.process = subprocess.Popen(["true"])
                job.process.wait()
                yield job

    monkeypatch.setattr(cocoseg.sweeps.launching, "Pool", Recorded)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-dir", "mine", "-cn=train", "seed=1,2"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    from hydra.core.global_hydra import GlobalHydra

    escaped = rf"{tmp_path}/a \"b\""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ['hydra.sweep.dir="' + escaped + '"', "hydra.mode=MULTIRUN", "hydra.verbose=false"]
        config = compose("train", overrides, return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        launch(config, loader, [["seed=1"], ["seed=2", "hydra.sweep.subdir=x"]], 4, 2)
    first, second = commands
    assert first[:5] == [sys.executable, "train.py", "--config-dir=mine", "--config-name=train", "seed=1"]
    assert "hydra.mode=RUN" in first
    assert "hydra.mode=MULTIRUN" not in first
    assert "hydra.verbose=false" in first
    assert "hydra.job.num=4" in first
    assert f'hydra.run.dir="{escaped}/4"' in first
    assert f'hydra.run.dir="{escaped}/x"' in second


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
