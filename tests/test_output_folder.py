from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.output_folder import alone, require_own
from conftest import run_program

EVALUATE = {"checkpoint": "a.pth", "split": "val", "data": {}}
PREDICT = {"checkpoint": "a.pth", "input": "photos"}


@pytest.mark.parametrize("place", ["checkpoints/last.ckpt", "budget.json"])
def test_the_folder_of_a_training_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run" / place).touch()
    with pytest.raises(CocosegError, match=r"^run_dir: .*run is the folder of a training"):
        require_own(tmp_path / "run", EVALUATE, "run_dir")


@pytest.mark.parametrize("content", ["data: {}\n", "[unclosed", "- 1\n", "checkpoint: a\nsplit: val\n"])
def test_a_config_file_of_another_program_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CocosegError, match=r"^output: .* holds a config\.yaml of another program"):
        require_own(tmp_path, PREDICT, "output")


def test_the_own_folder_may_be_written_to_again(tmp_path: Path) -> None:
    require_own(tmp_path / "new", PREDICT, "output")
    (tmp_path / "config.yaml").write_text("checkpoint: b.pth\nsplit: all\n")
    require_own(tmp_path, EVALUATE, "run_dir")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        alone(tmp_path, "output"),
        pytest.raises(CocosegError, match=r"^output: another process writes to"),
        alone(tmp_path, "output"),
    ):
        pass
    with alone(tmp_path, "output"):
        pass


@pytest.mark.parametrize("program", ["evaluate", "predict"])
def test_a_programs_mistake_costs_a_run_nothing(tmp_path: Path, program: str) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("{}\n")
    (tmp_path / "run/outcome.json").write_text("{}\n")
    (tmp_path / "run/.hydra").mkdir()
    (tmp_path / "run/.hydra/config.yaml").write_text("{}\n")
    (tmp_path / "model.pth").touch()
    given = {"evaluate": ("data=shapes", "run_dir=run"), "predict": ("input=.", "output=run")}[program]
    done = run_program(program, "checkpoint=model.pth", *given, cwd=tmp_path)
    assert done.returncode == 2
    assert "run is the folder of a training" in done.stderr
    for name in ("config.yaml", "outcome.json", ".hydra/config.yaml"):
        assert (tmp_path / "run" / name).read_text() == "{}\n"
