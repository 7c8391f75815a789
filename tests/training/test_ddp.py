"""Several processes in one training: they learn the same, stop together, and write everything once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cocoseg import distributed
from cocoseg.budget import signals
from cocoseg.budget.signals import StopOnSignal, StoppedBySignalError
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.sampling import in_batches
from cocoseg.inference.model import load_model
from cocoseg.training.metrics import ConfusionMatrix
from conftest import ROOT, SMALL, run_here, run_program
from tiny import shapes_config


def test_one_process_has_nobody_to_agree_with() -> None:
    assert distributed.from_rank_zero(0.25, True) == distributed.largest(0.25, True) == (0.25, True)
    assert distributed.broadcast({"a": 1}) == {"a": 1}
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    distributed.barrier()


def test_a_signal_to_another_rank_stops_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopOnSignal()
    stop.on_train_batch_start()
    monkeypatch.setattr(signals, "largest", lambda own: (signal.SIGTERM,))
    with pytest.raises(StoppedBySignalError):
        stop.on_validation_batch_start()
    assert stop.received == signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("more", [("trainer.devices=2",), ("trainer=ddp", "trainer.devices=1")])
def test_a_sweep_in_one_process_is_refused(tmp_path: Path, more: tuple[str, ...]) -> None:
    done = run_program("train", "-m", "seed=0,1", *SMALL, "trainer.max_steps=1", *more, cwd=tmp_path)
    assert done.returncode == 1
    assert "a job on several devices needs a process of its own; add hydra/launcher=local" in done.stderr
    assert not (tmp_path / "prepared").exists()


def test_processes_that_others_start_need_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    done = run_here("train", "trainer=ddp", *SMALL, "trainer.max_steps=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: run_dir: processes that torchrun or Slurm starts")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        pytest.param(
            *("data.batch_size=auto", "data.batch_size=auto is for one device"), marks=pytest.mark.slow
        ),
        ("trainer.strategy=ddp_spawn", "trainer.strategy is 'ddp_spawn'; it must be"),
    ],
)
def test_what_several_devices_refuse(tmp_path: Path, override: str, said: str) -> None:
    done = run_here(
        "train", "trainer=ddp", "trainer.devices=2", *SMALL, "trainer.max_steps=1", override, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")


# --- two processes on CPUs

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
IMAGES, BATCH = 27, 4
Start = Callable[..., subprocess.Popen]


def command(folder: Path, *overrides: str) -> tuple[list[str], dict[str, Any]]:
    """A training with a witness, which writes to `folder`/seen."""
    fixed = [
        *(*TWO, *SMALL, f"data.shapes.images={IMAGES}", f"data.batch_size={BATCH}", "data.val_fraction=0.4"),
        *(f"data.root={folder}/shapes", f"data.prepared_dir={folder}/prepared", "prepare.workers=1"),
        *("trainer.precision=32-true", "run_dir=run", "+callbacks.witness._target_=witness.Witness"),
        f"+callbacks.witness.folder={folder}/seen",
    ]
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return [str(ROOT / "train.py"), *fixed, *overrides], {"cwd": folder, "env": environment, "text": True}


def trained(folder: Path, *overrides: str, program: tuple[str, ...] = ()) -> SimpleNamespace:
    """Runs to its end: exit code, what was said, what each process saw."""
    arguments, options = command(folder, *overrides)
    done = subprocess.run([sys.executable, *program, *arguments], capture_output=True, timeout=300, **options)
    result = SimpleNamespace(code=done.returncode, said=done.stdout, errors=done.stderr, folder=folder)
    if (folder / "seen" / "1.json").exists():
        result.seen = [json.loads((folder / "seen" / f"{rank}.json").read_bytes()) for rank in range(2)]
        result.saved = [torch.load(folder / "seen" / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return result


def assert_same_weights(run: SimpleNamespace) -> None:
    first, second = (content["weights"] for content in run.saved)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def assert_written_once(run: SimpleNamespace, files: int = 1) -> None:
    names = [path.name for path in (run.folder / "run").iterdir()]
    assert sum(name.startswith("events.out") for name in names) == files
    assert [name for name in names if name.endswith(".log")] == ["train.log"]
    assert sorted(path.name for path in (run.folder / "run" / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert run.said.count("model   ") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training of two processes until its time is up."""
    folder = tmp_path_factory.mktemp("ddp")
    return trained(folder, "trainer.max_time=00:00:00:14", "augment=default", "augment.start_size=0.5")


@pytest.mark.slow
def test_the_time_ends_all_after_the_same_step(run: SimpleNamespace) -> None:
    assert (run.code, run.errors) == (0, "")
    first, second = run.seen
    assert first["steps"] == second["steps"] >= 1
    assert len(first["rates"]) == first["steps"]
    assert first["rates"] == second["rates"]  # bit for bit
    ledger = json.loads((run.folder / "run" / "budget.json").read_bytes())
    assert ledger["limit"] == 14
    assert ledger["finished"]


@pytest.mark.slow
def test_all_have_the_same_weights(run: SimpleNamespace) -> None:
    assert_same_weights(run)


@pytest.mark.slow
def test_everything_is_written_and_said_once(run: SimpleNamespace) -> None:
    assert_written_once(run)
    assert run.said.count("training on 16 images, validating on 11") == 1


@pytest.mark.slow
def test_scores_are_those_of_one_process(run: SimpleNamespace) -> None:
    """The matrix of the last validation, over all images or as many as there was time for."""
    matrices = [content["matrix"] for content in run.saved]
    assert torch.equal(*matrices)
    data = SegmentationDataModule(
        shapes_config(run.folder / "shapes", run.folder / "prepared", val_fraction=0.4, batch_size=BATCH)
    )
    data.prepare_data()
    data.setup("fit")
    net = load_model(run.folder / "run" / "checkpoints" / "last.ckpt")
    done = run.seen[0]["batches"]
    numbers = [n for rank in range(2) for batch in in_batches(11, BATCH, rank, 2)[:done] for n in batch]
    confusion = ConfusionMatrix(len(data.labels))
    with torch.inference_mode():
        for number in sorted(numbers):
            image, mask = data.val_set[number]
            confusion.update(net(image[None]).argmax(1), mask[None])
    assert confusion.matrix.sum() > 0
    assert torch.equal(confusion.matrix, matrices[0])


@pytest.mark.slow
def test_resuming_goes_on_in_all(tmp_path: Path) -> None:
    first = trained(tmp_path, "trainer.max_steps=3")
    assert (first.code, first.errors) == (0, "")
    second = trained(tmp_path, "trainer.max_steps=8", "resume=auto")
    assert (second.code, second.errors) == (0, "")
    assert [seen["steps"] for seen in second.seen] == [8, 8]
    assert [len(seen["rates"]) for seen in second.seen] == [5, 5]
    assert_same_weights(second)
    assert_written_once(second, files=2)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 0)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_ends_all_in_order(
    tmp_path: Path, rank: int, number: signal.Signals, code: int
) -> None:
    process, pid = start_and_wait_for_steps(tmp_path, rank)
    os.kill(pid, number)
    said, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, "")
    assert f"{number.name}: stopped at step" in said
    seen = [json.loads((tmp_path / "seen" / f"{rank}.json").read_bytes()) for rank in range(2)]
    assert seen[0]["steps"] == seen[1]["steps"]
    assert (tmp_path / "run" / "segmentation_model.pth").is_file()
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == seen[0]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_none_outlives_one_that_is_killed(tmp_path: Path, rank: int) -> None:
    process, pid = start_and_wait_for_steps(tmp_path, rank)
    pids = [int((tmp_path / "seen" / f"{number}.pid").read_text()) for number in range(2)]
    os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_ends_all(tmp_path: Path, rank: int) -> None:
    run = trained(tmp_path, "trainer.max_epochs=1000", *trouble("error", rank))
    assert run.code
    assert "ZeroDivisionError: on purpose" in run.errors


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_is_no_number_in_one_ends_all_with_one_line(tmp_path: Path, rank: int) -> None:
    run = trained(tmp_path, "trainer.max_epochs=1000", *trouble("nan", rank))
    assert run.code
    assert run.errors.lower().startswith("error: the loss is nan")
    assert run.errors.count("\n") == 1
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.slow
def test_processes_that_torchrun_starts(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    run = trained(tmp_path, "trainer.max_steps=4", program=torchrun)
    assert run.code == 0
    assert [seen["steps"] for seen in run.seen] == [4, 4]
    assert_same_weights(run)
    assert_written_once(run)


@pytest.mark.slow
def test_an_encoder_may_be_frozen_at_first(tmp_path: Path) -> None:
    fine = ("model=unet_residual", "finetune.frozen=0.5", "finetune.encoder_lr=0.1")
    run = trained(tmp_path, "trainer.max_steps=4", *fine)
    assert (run.code, run.errors) == (0, "")
    assert_same_weights(run)


@pytest.mark.slow
def test_jobs_of_the_local_launcher(tmp_path: Path) -> None:
    local = ("hydra/launcher=local", "hydra.sweep.dir=sweep")
    small = (*SMALL, *TWO, f"data.shapes.images={IMAGES}", "data.val_fraction=0.4", "trainer.max_steps=2")
    done = run_program("train", "-m", *small, *local, "seed=0,1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for job in "01":
        assert (tmp_path / "sweep" / job / "segmentation_model.pth").is_file()


def start_and_wait_for_steps(folder: Path, rank: int) -> tuple[subprocess.Popen, int]:
    """A training that is under way, and the number of one of its processes."""
    arguments, options = command(folder, "trainer.max_epochs=100000")
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    step = folder / "seen" / f"{rank}.step"
    deadline = time.monotonic() + 120
    while not step.exists() or int(step.read_text() or 0) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process, int((folder / "seen" / f"{rank}.pid").read_text())


def trouble(kind: str, rank: int) -> tuple[str, ...]:
    node = {"_target_": "witness.Trouble", "kind": kind, "rank": rank}
    return tuple(f"+callbacks.trouble.{key}={value}" for key, value in node.items())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
