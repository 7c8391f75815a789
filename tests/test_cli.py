"""The command lines of train.py and prepare.py, run as a user runs them."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cocoseg.errors import CocosegError, count_of
from cocoseg.networks.model_file import read_weights
from cocoseg.preparation.demo_shapes import draw_shapes
from conftest import ROOT, SMALL, run_here, run_program, write_coco
from tensorboard_api import TensorBoardApi

COMPLETE = {
    "config.yaml",
    "train.log",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "segmentation_model.pth",
    "examples.png",
    "metrics.json",
    "training_images.json",
}


def files(folder: Path) -> set[str]:
    """The files below a folder, Hydra's own left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if ".hydra" not in path.parts}


def the_run(cwd: Path, program: str = "train") -> Path:
    """The folder of the only run."""
    (folder,) = (cwd / "outputs" / program).iterdir()
    return folder


def steps(run: Path) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


# ---- prepare, train, resume


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`prepare.py`, then `train.py` for four steps. Not to be changed."""
    cwd = tmp_path_factory.mktemp("trained")
    prepared = run_here("prepare", *SMALL, cwd=cwd)
    asked = ("trainer.profiler=simple", "trainer.enable_model_summary=true")
    train = run_here("train", *SMALL, "trainer.max_steps=4", *asked, cwd=cwd)
    return SimpleNamespace(cwd=cwd, prepared=prepared, train=train)


def test_prepare_draws_the_masks_once(trained: SimpleNamespace):
    (folder,) = (trained.cwd / "prepared").iterdir()
    assert (trained.prepared.returncode, trained.prepared.stderr) == (0, "")
    assert f"{folder.relative_to(trained.cwd)}/masks: 12 masks" in trained.prepared.stdout
    assert {"index.json", "labels.json", "prepared.json", "subset_train_annotations.json"} < files(folder)
    assert len(list(folder.glob("masks/*_mask_cats_*.png"))) == 12
    assert "nothing changed" in trained.train.stdout


def test_train_leaves_a_complete_run(trained: SimpleNamespace):
    assert (trained.train.returncode, trained.train.stderr) == (0, "")
    run = the_run(trained.cwd)
    found = files(run)
    assert found > COMPLETE
    assert any(name.startswith("events.out.tfevents") for name in found)
    assert steps(run) == 4
    config = OmegaConf.load(run / "config.yaml")
    assert config.data.images == "data/shapes/images"
    assert "${" not in (run / "config.yaml").read_text()


def test_train_ends_with_scores_and_paths(trained: SimpleNamespace):
    run = the_run(trained.cwd)
    last = trained.train.stdout.splitlines()[-25:]
    for word in ("class ", "background", "mIoU (without background)", "pixel accuracy"):
        assert any(line.startswith(word) for line in last), word
    for path in (run, run / "segmentation_model.pth", run / "examples.png"):
        assert any(str(path.relative_to(trained.cwd)) in line for line in last), path
    assert any("tensorboard --logdir" in line for line in last)
    assert (run / "train.log").read_text().count("pixel accuracy") == 1


def test_train_prints_each_validation_and_what_was_asked_of_lightning(trained: SimpleNamespace):
    log = (the_run(trained.cwd) / "train.log").read_text()
    for line in (
        r"epoch 2  step 4  loss \d\.\d{3}  val loss \d\.\d{3}  val mIoU \d\.\d{3}$",
        r"^[\d ]+\| net\.stem +\| Sequential +\|",
        r"  run_training_epoch$",  # an action of the profiler's report
    ):
        for text in (trained.train.stdout, log):
            assert len(re.findall(line, text, re.MULTILINE)) == 1, line
    report = trained.train.stdout.partition("Profiler report")[2].partition("\n\n")[0]
    assert max(map(len, report.splitlines())) <= 80


def test_tensorboard_opens_on_losses_and_scores(trained: SimpleNamespace):
    """It sorts tags, with `_` as `/`, into groups by what is before a `/`, and shows the first two."""
    tags = EventAccumulator(str(the_run(trained.cwd))).Reload().Tags()
    ordered = sorted((*tags["scalars"], *tags["images"]), key=lambda tag: tag.replace("_", "/"))
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in ordered))
    validation = [f"validation_{what}" for what in ("best", "classes", "examples", "iou")]
    assert groups == ["train", "val", *validation, "wall_clock"]


def test_programs_write_nowhere_else(trained: SimpleNamespace):
    assert {path.name for path in trained.cwd.iterdir()} == {"outputs", "prepared", "data"}
    assert {path.name for path in (trained.cwd / "outputs").iterdir()} == {"prepare", "train"}
    temporary = [name for name in files(trained.cwd) if "/." in name and Path(name).suffix]
    assert temporary == []


def test_resume_from_a_checkpoint(trained: SimpleNamespace, tmp_path: Path):
    """The checkpoint is from between validation and the end of an epoch, which has no batch left then."""
    checkpoint, run = the_run(trained.cwd) / "checkpoints/last.ckpt", tmp_path / "run"
    overrides = (*SMALL, "trainer.max_steps=8", f"run_dir={run}")
    ckpt_path = f"ckpt_path={checkpoint.relative_to(trained.cwd)}"
    done = run_here("train", *overrides, ckpt_path, cwd=trained.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(run) == 8
    assert files(run) > COMPLETE
    before = read_weights(checkpoint)["state_dict"]
    after = read_weights(run / "checkpoints/last.ckpt")["state_dict"]
    assert not torch.equal(before["head.weight"], after["head.weight"])
    events = EventAccumulator(str(run)).Reload()
    scalars = [(tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    assert [(tag, value) for tag, value in scalars if not math.isfinite(value)] == []


@pytest.mark.slow
def test_resume_keeps_the_best_of_before(trained: SimpleNamespace, tmp_path: Path):
    """A run that goes on from a checkpoint does not export a worse model than it had."""
    checkpoints = the_run(trained.cwd) / "checkpoints"
    shutil.copyfile(checkpoints / "last.ckpt", tmp_path / "last.ckpt")
    content = torch.load(checkpoints / "best.ckpt", weights_only=True)
    content["scores"]["miou"] = 2.0  # not to be beaten
    torch.save(content, tmp_path / "best.ckpt")
    overrides = (*SMALL, "trainer.max_steps=6", f"run_dir={tmp_path / 'run'}")
    done = run_here("train", *overrides, f"ckpt_path={tmp_path / 'last.ckpt'}", cwd=trained.cwd)
    assert done.returncode == 0, done.stderr
    wanted = read_weights(checkpoints / "best.ckpt")["state_dict"]
    found = read_weights(tmp_path / "run/segmentation_model.pth")["state_dict"]
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


@pytest.mark.slow
def test_overrides_take_effect_and_the_time_ends_the_run(tmp_path: Path):
    """The README's one-liner, without prepare.py before it."""
    done = run_program(
        "train",
        "data=shapes",
        "data.shapes.images=12",
        "data.image_size=[32,32]",
        "trainer.max_time=00:00:00:45",  # the start alone takes 15 s on a busy machine
        "data.batch_size=4",
        "model.base_channels=4",
        "optimizer.lr=3e-4",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path)
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.max_time == "00:00:00:45"
    assert (config.trainer.max_steps, config.trainer.max_epochs) == (-1, -1)
    assert (config.data.batch_size, config.model.base_channels, config.optimizer.lr) == (4, 4, 3e-4)
    assert files(run) > COMPLETE
    assert steps(run) > 0
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert 0 < content["optimizer_states"][0]["param_groups"][0]["lr"] <= 3e-4
    assert read_weights(run / "segmentation_model.pth")["state_dict"]["stem.0.weight"].shape[0] == 4


@pytest.mark.slow
def test_custom_data_with_a_validation_file(tmp_path: Path):
    """The file names of both folders are the same; that must not matter."""
    draw_shapes(tmp_path / "mine", images=12, seed=1)
    draw_shapes(tmp_path / "held out", images=5, seed=2)
    done = run_program(
        "train",
        "data=custom",
        "data.images=mine/images",
        "data.annotations=mine/annotations/instances.json",
        "data.val_images=held out/images",
        "data.val_annotations=held out/annotations/instances.json",
        *SMALL[2:],
        "trainer.max_steps=3",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "training on 12 images, validating on 5" in done.stdout
    assert files(the_run(tmp_path)) > COMPLETE
    (folder,) = (tmp_path / "prepared").iterdir()
    assert len(list(folder.glob("masks/*.png"))) == 12
    assert len(list(folder.glob("val/masks/*.png"))) == 5


@pytest.mark.slow
def test_same_seed_same_weights(tmp_path: Path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        overrides = (*SMALL, "trainer.max_steps=4", f"seed={seed}", f"run_dir={name}")
        done = run_program("train", *overrides, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights.append(read_weights(tmp_path / name / "segmentation_model.pth")["state_dict"])
    first, same, other = weights
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


# ---- multirun


@pytest.mark.slow
def test_multirun_trains_every_job(tmp_path: Path):
    overrides = (*SMALL, "trainer.max_steps=2", "optimizer.lr=1e-4,1e-3")
    done = run_program("train", "-m", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (sweep,) = (tmp_path / "outputs/multirun").iterdir()
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {"0", "1"}
    for job, lr in (("0", 1e-4), ("1", 1e-3)):
        assert files(sweep / job) > COMPLETE
        assert any(name.startswith("events.out.tfevents") for name in files(sweep / job))
        assert OmegaConf.load(sweep / job / "config.yaml").optimizer.lr == lr
        assert f"{sweep.relative_to(tmp_path)}/{job}/segmentation_model.pth" in done.stdout
    board = TensorBoardApi(sweep)
    assert {job: row["optimizer.lr"] for job, row in board.rows().items()} == {"0": 1e-4, "1": 1e-3}
    for job, row in board.rows().items():
        assert row["validation_best/miou"] == pytest.approx(
            json.loads((sweep / job / "metrics.json").read_bytes())["miou"]
        )
    assert board.columns()[:3] == ["data.batch_size", "optimizer.lr", "seed"]


def assert_lists_failures(done: subprocess.CompletedProcess[str], *sentences: str) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.rstrip().splitlines()[-len(sentences) - 1 :]
    assert "failed" in last[0]
    for line, sentence in zip(last[1:], sentences, strict=True):
        assert sentence in line


def test_multirun_goes_on_after_a_failure(tmp_path: Path):
    overrides = (*SMALL[:2], "prepare.workers=1", "masks.overlap=biggest,max")
    done = run_here("prepare", "-m", *overrides, cwd=tmp_path)
    assert_lists_failures(done, "masks.overlap is 'biggest'")
    (sweep,) = (tmp_path / "outputs/multirun").iterdir()
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {"0", "1"}
    assert len(list((tmp_path / "prepared").glob("*/prepared.json"))) == 1


def test_multirun_refuses_a_shared_run_dir(tmp_path: Path):
    done = run_here("prepare", "-m", "data=shapes", "data.subset.seed=1,2", "run_dir=mine", cwd=tmp_path)
    assert_lists_failures(done, "run_dir", "run_dir")
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


# ---- signals


@pytest.fixture
def start() -> Iterator:
    """Start a program in a process group of its own, as a shell does; kills what is left in the end."""
    started: list[subprocess.Popen[str]] = []

    def popen(program: str, *overrides: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        # Into files: a pipe stays open as long as any process of the group lives.
        with (cwd / "stdout").open("w") as stdout, (cwd / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / f"{program}.py"), *overrides],
                cwd=cwd,
                env={**os.environ, **environment, "PYTHONFAULTHANDLER": "1"},
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield popen
    for process in started:
        if group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def group_lives(process: subprocess.Popen[str]) -> bool:
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(cwd: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not any(cwd.glob(pattern)):
        assert process.poll() is None, (cwd / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def send(number: signal.Signals, process: subprocess.Popen[str], *, to_group: bool) -> None:
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


def ended(process: subprocess.Popen[str], cwd: Path) -> tuple[str, str]:
    """Stdout and stderr of a program, which must end within three minutes."""
    try:
        process.wait(timeout=180)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's faulthandler writes where it hangs
        process.wait()
        pytest.fail(f"still ran after three minutes:\n{(cwd / 'stderr').read_text()}")
    return (cwd / "stdout").read_text(), (cwd / "stderr").read_text()


@pytest.mark.parametrize(
    ("number", "to_group", "exit_code"),
    [
        pytest.param(signal.SIGINT, True, 130, id="ctrl_c", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 143, id="kill"),
        pytest.param(signal.SIGUSR1, False, 0, id="warning", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, 143, id="service_stop", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_training_in_order(
    start, tmp_path: Path, number: signal.Signals, to_group: bool, exit_code: int
):
    """A terminal's Ctrl-C and a service manager's SIGTERM reach the DataLoader's processes too.

    No stack trace is printed, and none of Lightning's warnings and tips.
    """
    limit = "trainer.max_time=00:01:00:00"
    often = ("budget.checkpoint_every=00:00:00:02", "trainer.check_val_every_n_epoch=1")
    process = start("train", *SMALL[:-1], limit, *often, "data.num_workers=1", cwd=tmp_path)
    wait_for(tmp_path, "outputs/train/*/checkpoints/best.ckpt", process)
    send(number, process, to_group=to_group)
    stdout, stderr = ended(process, tmp_path)
    assert (process.returncode, stderr) == (exit_code, "")
    assert "Traceback" not in stdout
    assert "GPU available" not in stdout
    run = the_run(tmp_path)
    assert files(run) > COMPLETE
    done = steps(run)
    assert done > 0
    read_weights(run / "checkpoints/last.ckpt")
    (advice,) = (line for line in stdout.splitlines() if "to resume: " in line)
    assert f"step {done};" in advice
    assert advice.endswith(f" run_dir={run.relative_to(tmp_path)} resume=auto")
    assert not group_lives(process)


CTRL_C = """
import os, signal, lightning

class Now(lightning.Callback):
    pressed = False
    def {hook}(self, *_):
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.fixture
def ctrl_c(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Overrides for a callback that presses Ctrl-C itself, at the hook of this name."""

    def overrides(hook: str) -> tuple[str, ...]:
        (tmp_path / "ctrl_c.py").write_text(CTRL_C.replace("{hook}", hook))
        return (*SMALL, "+callbacks.ctrl_c._target_=ctrl_c.Now")

    return overrides


@pytest.mark.slow
def test_ctrl_c_before_the_first_step(ctrl_c, tmp_path: Path):
    """There is nothing to go on from, and no such advice."""
    overrides = ctrl_c("on_sanity_check_start")
    done = run_program("train", *overrides, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "to resume" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_save_checkpoint", "on_train_batch_end"])
def test_ctrl_c_in_whatever_it_is_doing(ctrl_c, tmp_path: Path, hook: str):
    overrides = (*ctrl_c(hook), "trainer.max_epochs=200", "trainer.num_sanity_val_steps=0")
    done = run_program("train", *overrides, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    run = the_run(tmp_path)
    assert 0 < steps(run) < 600
    assert read_weights(run / "segmentation_model.pth")["state_dict"]
    assert read_weights(run / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.slow
def test_the_same_command_begins_goes_on_and_says_when_the_time_is_up(tmp_path: Path):
    command = ("train", *SMALL[:-1], "run_dir=run", "resume=auto", "budget.checkpoint_every=00:00:00:02")
    begun = run_program(*command, "trainer.max_time=00:00:00:45", "trainer.max_steps=3", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    assert steps(tmp_path / "run") == 3
    on = run_program(*command, "trainer.max_time=00:01:00", cwd=tmp_path)
    assert on.returncode == 0, on.stderr
    trained = steps(tmp_path / "run")
    assert trained > 3
    ledger = json.loads((tmp_path / "run/budget.json").read_bytes())
    assert 45 < ledger["used"] <= 60
    (tmp_path / "run/segmentation_model.pth").unlink()

    before = json.loads((tmp_path / "run/outcome.json").read_bytes())
    over = run_program(*command, cwd=tmp_path)  # without max_time: that of the run holds
    assert over.returncode == 0, over.stderr
    assert "of 0:01:00 are used: nothing left to train; budget.extend=1h adds an hour" in over.stdout
    assert json.loads((tmp_path / "run/outcome.json").read_bytes()) == before
    epochs = count_of(before["epochs"], "epoch")
    assert f"trained      {epochs}, {trained} steps" in over.stdout
    assert steps(tmp_path / "run") == trained
    assert read_weights(tmp_path / "run/segmentation_model.pth")["state_dict"]

    more = run_program(*command, "budget.extend=00:00:00:30", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert steps(tmp_path / "run") > trained


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_with_one_line(tmp_path: Path):
    done = run_program(
        "train", *SMALL, "trainer.max_steps=200", "optimizer.lr=1e30", "schedule.warmup=0", cwd=tmp_path
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the loss is ")
    assert "lower optimizer.lr" in line


@pytest.mark.slow
def test_ctrl_c_ends_the_whole_multirun(ctrl_c, tmp_path: Path):
    overrides = (*ctrl_c("on_train_epoch_end"), "optimizer.lr=1e-4,1e-3")
    done = run_program("train", "-m", *overrides, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (sweep,) = (tmp_path / "outputs/multirun").iterdir()
    assert [job.name for job in sweep.iterdir() if job.is_dir()] == ["0"]
    assert files(sweep / "0") > {"segmentation_model.pth", "checkpoints/last.ckpt"}


@pytest.mark.parametrize(
    ("number", "to_group", "exit_codes"),
    [
        pytest.param(signal.SIGINT, True, {130}, id="ctrl_c", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, {143, -signal.SIGTERM}, id="kill"),
    ],
)
def test_a_signal_ends_the_preparation_in_order(
    start, tmp_path: Path, number: signal.Signals, to_group: bool, exit_codes: set[int]
):
    """No process goes on drawing, and the next preparation is as good as the first."""
    big, count = 1500, 96
    PIL.Image.new("RGB", (big, big)).save(tmp_path / "0.png")
    (tmp_path / "images").mkdir()
    for image_id in range(1, count + 1):
        os.link(tmp_path / "0.png", tmp_path / f"images/{image_id}.png")
    write_coco(
        tmp_path / "instances.json",
        images=[{"id": i, "file_name": f"{i}.png", "width": big, "height": big} for i in range(1, count + 1)],
        annotations=[
            {"id": i, "image_id": i, "category_id": 2, "segmentation": [[0, 0, 9, 0, 9, 9]]}
            for i in range(1, count + 1)
        ],
    )
    overrides = (
        "data=custom",
        "data.images=images",
        "data.annotations=instances.json",
        "data.prepared_dir=masks",
        "prepare.workers=2",
    )
    process = start("prepare", *overrides, cwd=tmp_path)
    wait_for(tmp_path, "masks/new.part/masks/*.png", process)
    send(number, process, to_group=to_group)
    stdout, stderr = ended(process, tmp_path)
    assert process.returncode in exit_codes, stderr
    assert "Traceback" not in stdout + stderr
    deadline = time.monotonic() + 60
    while group_lives(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_lives(process), "worker processes are left"
    assert not (tmp_path / "masks/masks").exists()
    if number == signal.SIGINT:
        assert not (tmp_path / "masks/new.part").exists()


# ---- help, start-up, errors


# Runs the commands of the argument, and says whether one of them imported torch.
RUN_ALL = """
import json, sys
from pathlib import Path
from conftest import run_here
done = [run_here(*command, cwd=Path.cwd()) for command in json.loads(sys.argv[1])]
print(json.dumps(["torch" in sys.modules, *([one.returncode, one.stderr] for one in done)]))
"""


@pytest.mark.parametrize("program", ["train", "prepare", "evaluate", "predict"])
def test_help(program: str, tmp_path: Path):
    done = run_here(program, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith(f"  python {program}.py ")]) in (3, 4)
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("-m", "seed=1,2", "sead=3"), "sead: no such setting; did you mean seed?"),
        (("-m", "++sweep.factor=2,3"), "sweep.factor is gone: choose sweep.pruner=halving, which has a"),
    ],
    ids=str,
)
def test_unknown_and_removed_keys_end_with_one_line(
    overrides: tuple[str, ...], sentence: str, tmp_path: Path
):
    done = run_here("train", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_preparation_help_and_mistakes_need_no_torch(tmp_path: Path):
    commands = [
        ("prepare", *SMALL),
        ("evaluate", "--help"),
        ("train", *SMALL, "data.subset.size=0"),
        ("predict", "checkpoint=none.pth", "input=photos"),
    ]
    python = [sys.executable, "-c", RUN_ALL, json.dumps(commands)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    has_torch, prepare, help_, train, predict = json.loads(done.stdout)
    assert not has_torch
    assert prepare == help_ == [0, ""]
    assert train[0] == 2
    assert "data.subset.size" in train[1]
    assert predict == [2, "error: checkpoint: no file none.pth\n"]


def test_full_error_shows_the_stack_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(CocosegError, match=r"^data\.root: no folder nowhere"):
        run_here("prepare", "data.root=nowhere", cwd=tmp_path)


def test_a_command_composes_its_settings_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Hydra by itself does so twice, a third of a second each time."""
    compose, calls = ConfigLoaderImpl._load_configuration_impl, []
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda *a, **k: calls.append(k) or compose(*a, **k)
    )
    done = run_here("prepare", "data.root=nowhere", cwd=tmp_path)
    assert "data.root: no folder nowhere" in done.stderr
    assert len(calls) == 1


def test_prepare_in_another_folder(tmp_path: Path):
    """Paths with blanks and letters beyond ASCII, given in full; the programs lie elsewhere."""
    root, here = tmp_path / "Bilder für cocoseg", tmp_path / "a b"
    here.mkdir()
    done = run_here(
        "prepare",
        "data=shapes",
        "data.shapes.images=3",
        f"data.root='{root}'",  # Hydra wants quotes around what is not plain ASCII
        f"data.prepared_dir='{root / 'Masken'}'",
        cwd=here,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(root.glob("Masken/masks/*.png"))) == 3
    assert {path.name for path in here.iterdir()} == {"outputs"}
