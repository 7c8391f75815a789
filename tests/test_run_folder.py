import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cocoseg import files
from cocoseg.errors import CocosegError
from cocoseg.run_folder import FAILED, STOPPED, Console, MakeFolder, Outcome, open_folder, require_free
from conftest import ROOT, SMALL, run_here


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Opens a folder as a program does within a job of Hydra's."""
    job = {"job": {"name": "evaluate"}, "runtime": {"output_dir": str(tmp_path / "run")}}
    hydra = OmegaConf.merge({"hydra": OmegaConf.structured(HydraConf)}, {"hydra": job})
    monkeypatch.setattr(HydraConfig.instance(), "cfg", hydra)
    return lambda: open_folder(OmegaConf.create({"seed": 3}), "evaluate", key="run_dir")


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "budget.json"])
def test_the_folder_of_a_training_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run" / name).touch()
    with pytest.raises(CocosegError, match=r"^run_dir: .*run is the folder of a training"):
        require_free(tmp_path / "run", "evaluate", key="run_dir", overwrite=True)


@pytest.mark.parametrize("content", ["data: {}\n", "[unclosed", "", "program: evaluate\n"])
def test_a_config_file_of_another_program_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CocosegError, match=r"^output: .* holds a config\.yaml of another program"):
        require_free(tmp_path, "predict", key="output", overwrite=True)


def test_an_earlier_run_of_the_same_program_may_be_overwritten_or_not(tmp_path: Path) -> None:
    require_free(tmp_path / "new", "predict", key="output", overwrite=True)
    (tmp_path / "config.yaml").write_text("program: train\nseed: 0\n")
    require_free(tmp_path, "train", key="run_dir", overwrite=True)
    with pytest.raises(CocosegError, match=r"already holds a run; .* by resume=auto"):
        require_free(tmp_path, "train", key="run_dir", overwrite=False)


def test_a_run_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}\n")  # which did not name its program
    require_free(tmp_path, "train", key="run_dir", overwrite=True)


def test_a_folder_is_unchanged_until_the_run_begins(opened, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "outcome.json"):
        (tmp_path / "run" / name).write_text("program: evaluate\n")
    with pytest.raises(CocosegError, match="no image"), opened():
        raise CocosegError("no image")
    for name in ("config.yaml", "outcome.json"):
        assert (tmp_path / "run" / name).read_text() == "program: evaluate\n"


def test_a_refused_command_leaves_no_lock_in_a_new_folder(opened, tmp_path: Path) -> None:
    with pytest.raises(CocosegError), opened():
        raise CocosegError("no image")
    assert list((tmp_path / "run").iterdir()) == []


def test_the_log_holds_what_was_said_before_the_run_began(opened, tmp_path: Path) -> None:
    log = logging.getLogger("cocoseg.test")
    log.setLevel(logging.INFO)
    with opened() as folder:
        log.info("early")
        folder.begin()
        log.info("late")
    lines = (tmp_path / "run/evaluate.log").read_text().splitlines()
    assert [line.partition(" - ")[2] for line in lines] == ["early", "late"]
    assert (tmp_path / "run/config.yaml").read_text() == "program: evaluate\nseed: 3\n"
    assert (tmp_path / "run/.hydra/config.yaml").read_text() == "seed: 3\n"
    log.info("after")
    assert (tmp_path / "run/evaluate.log").read_text().splitlines() == lines


def hold_and_begin(folder: Path, is_held: Event, may_begin: Event) -> None:
    """Hold a folder, and begin a training there as if its checks had passed."""
    with files.locked(folder):
        is_held.set()
        may_begin.wait()
        (folder / "config.yaml").write_text("program: train\n")


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Lets another process hold `run`. Returns what makes it begin a training there."""
    context = get_context("fork")
    is_held, may_begin = context.Event(), context.Event()
    process = context.Process(target=hold_and_begin, args=(tmp_path / "run", is_held, may_begin))
    process.start()
    try:
        assert is_held.wait(60)
        yield may_begin.set
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_claimed_before_it_is_checked(
    busy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, opened
) -> None:
    monkeypatch.setattr(files.log, "info", lambda *_: busy())  # that this process waits
    assert not (tmp_path / "run/config.yaml").exists()  # a check before the claim would pass
    config = OmegaConf.create({"seed": 3})
    program = "train" if not overwrite else "evaluate"
    with (
        pytest.raises(CocosegError, match=r"already holds a run; |of another program; "),
        open_folder(config, program, key="run_dir", overwrite=overwrite),
    ):
        pass
    assert (tmp_path / "run/config.yaml").read_text() == "program: train\n"


RUN = ("config.yaml", "outcome.json", ".hydra/config.yaml", "segmentation_model.pth", "predictions.json")


@pytest.mark.parametrize("program", ["train", "prepare", "evaluate", "predict"])
def test_a_folder_that_another_process_writes_to_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, shapes_root: Path, busy
) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.1)
    for name in RUN:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(f"program: {program}\n")
    (tmp_path / "model.pth").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    data = [f"data.root={shapes_root}", "data=shapes"]
    overrides = {
        "train": [*data, "run_dir=run", "resume=auto"],
        "prepare": [*data, "run_dir=run"],
        "evaluate": [*data, "run_dir=run", "checkpoint=model.pth"],
        "predict": ["checkpoint=model.pth", f"input={shapes_root}/images", "output=run"],
    }
    done = run_here(program, *overrides[program], cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "another process writes to run" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_messages_hold_names_and_their_own_lines_only(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = logging.getLogger("cocoseg.test")
    log.addHandler(console := Console(stream))
    log.warning("%s: %s\n%d", Path("a\nb\x1b[2J"), CocosegError("x\ny"), 3)
    log.removeHandler(console)
    assert stream.getvalue() == "a b [2J: x y\n3\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_messages_that_can_not_be_written_are_one_warning(tmp_path: Path) -> None:
    data = "data=shapes", "data.shapes.images=4"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(ROOT / "prepare.py"), *data]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    warning = "warning: messages are lost, stdout can't be written: [Errno 28] No space left on device\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert list(tmp_path.glob("prepared/*/preview.png"))


def test_a_failure_after_the_begin_is_recorded(opened, tmp_path: Path) -> None:
    def fail() -> None:
        with opened() as folder:
            folder.begin()
            raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Outcome.read(tmp_path / "run") == Outcome(FAILED, "ZeroDivisionError: by zero")


def test_outcomes_of_errors() -> None:
    assert Outcome.of(CocosegError("no file a.png")) == Outcome(FAILED, "no file a.png")
    assert Outcome.of(KeyboardInterrupt()) == Outcome(STOPPED, "SIGINT")
    assert Outcome.of(SystemExit(143)) == Outcome(STOPPED, "by a signal")


@pytest.mark.parametrize("content", ["", "[]", '{"state": 3}'])
def test_a_damaged_outcome_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "outcome.json").write_text(content)
    assert Outcome.read(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"state": "pruned", "miou": 1, "of a later version": []}')
    assert Outcome.read(tmp_path) == Outcome("pruned", miou=1.0)


def test_a_programs_mistake_costs_a_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("{}\n")
    (tmp_path / "run/outcome.json").write_text("{}\n")
    (tmp_path / "run/.hydra").mkdir()
    (tmp_path / "run/.hydra/config.yaml").write_text("{}\n")
    (tmp_path / "model.pth").touch()
    before = sorted(tmp_path.rglob("*"))
    done = run_here("evaluate", "checkpoint=model.pth", "data=shapes", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert "run is the folder of a training" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    for name in ("config.yaml", "outcome.json", ".hydra/config.yaml"):
        assert (tmp_path / "run" / name).read_text() == "{}\n"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Composes the settings of train.py in an empty folder, always in the same second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("atexit.register", lambda function: None)

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("train", list(overrides), return_hydra_config=True)
        OmegaConf.get_cache(config)["now"].update({("%Y-%m-%d",): "2026-11-27", ("%H-%M-%S",): "18-00-00"})
        return config

    return composed


def test_runs_that_begin_in_the_same_second_get_a_folder_each(named, tmp_path: Path) -> None:
    runs = [named(), named(), named()]
    for config in runs:
        MakeFolder().on_run_start(config)
    names = [f"outputs/train/2026-11-27_18-00-00{end}" for end in ("", "_2", "_3")]
    assert [config.run_dir for config in runs] == [config.hydra.run.dir for config in runs] == names
    assert all((tmp_path / name).is_dir() for name in names)


def test_multiruns_that_begin_in_the_same_second_get_a_folder_each(named, tmp_path: Path) -> None:
    sweeps = [named("hydra.mode=MULTIRUN"), named("hydra.mode=MULTIRUN")]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for config, end in zip(sweeps, ("", "_2"), strict=True):
            MakeFolder().on_multirun_start(config)
            job = loader.load_sweep_config(config, ["seed=1"])
            name = f"outputs/multirun/2026-11-27_18-00-00{end}"
            assert job.hydra.sweep.dir == config.hydra.sweep.dir == name
            assert (tmp_path / name).is_dir()


def test_a_folder_that_is_named_is_used_again(named, tmp_path: Path) -> None:
    for config in (named("run_dir=mine"), named("run_dir=mine")):
        MakeFolder().on_run_start(config)
        assert config.hydra.run.dir == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_refused_training_leaves_nothing_behind(tmp_path: Path) -> None:
    for wrong in ("trainer.precision=8-wrong", "model._target_=no.such.Net", "loss.x=3"):
        done = run_here("train", *SMALL, "run_dir=mine/run", f"++{wrong}", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert not (tmp_path / "mine").exists()


def test_a_refused_command_leaves_nothing_behind(tmp_path: Path) -> None:
    data = ("data=custom", "data.images=.", "data.annotations=a.json")
    done = run_here("prepare", *data, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("program", "key", "place"),
    [
        ("prepare", "run_dir", "file"),
        ("prepare", "run_dir", "file/run"),
        ("train", "run_dir", "x" * 300),
        ("predict", "output", "file/run"),
        ("train", "hydra.sweep.dir", "file/sweep"),
    ],
)
def test_a_place_that_can_not_be_written_to_is_one_line(
    tmp_path: Path, program: str, key: str, place: str
) -> None:
    for name in ("file", "model.pth", "image.png"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    needed = ["checkpoint=model.pth", "input=image.png"] if program == "predict" else ["data=shapes"]
    multirun = ["-m", "seed=1,2"] if key == "hydra.sweep.dir" else []
    done = run_here(program, *multirun, *needed, f"{key}={place}", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {key}: {place} can't be written to (")
    assert done.stderr.endswith("); name another folder\n")
    assert sorted(tmp_path.rglob("*")) == before
