import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from cocoseg.budget.budget import END, Budget
from cocoseg.budget.open_run import Run
from cocoseg.config import Config
from cocoseg.figures.comparison import GAP
from cocoseg.figures.text import LINE
from cocoseg.networks.model_file import save_model
from cocoseg.networks.spec import ModelSpec
from cocoseg.training import extra_formats
from cocoseg.training.extra_formats import write_formats
from cocoseg.training.finish import EXAMPLES, write_sheet
from tiny import LABELS, SPEC, Reads, painted, tiny_module

PANEL = 27 * 5, 27 * 6  # height, width of an image of 5 x 6 pixels
HEIGHT, WIDTH = PANEL[0] + 2 * LINE, 4 * (PANEL[1] + GAP) - GAP


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (3, 3), (EXAMPLES + 2, EXAMPLES)])
def test_a_sheet_of_a_data_set_is_written(tmp_path, images, rows):
    truth = torch.arange(images).remainder(3).view(-1, 1, 1).expand(images, 5, 6)
    net = nn.Sequential(Reads(), nn.BatchNorm2d(3)).eval()
    net.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    pairs = [(painted(t[None])[0], t) for t in truth]
    seen: list[int] = []

    write_sheet(tmp_path / "new" / "examples.png", net, pairs, LABELS)

    with PIL.Image.open(tmp_path / "new" / "examples.png") as picture:
        pixels = np.array(picture)
    assert pixels.shape == (rows * (HEIGHT + GAP) - GAP, WIDTH, 3)
    for top in range(0, len(pixels), HEIGHT + GAP):
        truth, prediction = (pixels[top : top + PANEL[0], x : x + PANEL[1]] for x in (166, 332))
        assert (truth == prediction).all()  # all right
    assert set(seen) == {1}  # a batch of them may not fit into the memory


# --- other formats at the end of a run


def write_in(
    folder: Path, target: str, seconds: float, *names: str, stopped: bool = False, **more: bool
) -> None:
    """Write formats at the end of a run with so many seconds left, whose network has this `_target_`."""
    spec = ModelSpec({"_target_": target}, LABELS, SPEC.image_size)
    model = folder / "segmentation_model.pth"
    save_model(model, tiny_module(Reads()).net.state_dict(), spec, None)
    run = Run(folder, Budget(END + seconds))
    write_formats(Config(export=list(names), **more), run, model, target, stopped=stopped)
    assert stopped or run.budget.spent["saving"] > 0


@pytest.mark.slow
def test_a_custom_network_is_written_in_other_formats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        write_in(tmp_path, "tiny.Reads", 300, "pth", "torch_export")
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/segmentation_model.pt2  0.2 MB; logits within ")
    assert (tmp_path / "segmentation_model.pt2").is_file()


@pytest.mark.parametrize(
    ("target", "seconds", "reason"),
    [
        pytest.param(
            *("nowhere.Net", 300, "network: no class nowhere.Net (No module named 'nowhere')"),
            marks=pytest.mark.slow,
        ),
        ("tiny.Reads", 0.2, "there was no time left"),
    ],
)
def test_a_format_that_is_not_written_is_a_warning_with_the_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str, seconds: float, reason: str
) -> None:
    (tmp_path / ".part-1.onnx").touch()  # a process that was ended left it
    with caplog.at_level(logging.WARNING):
        write_in(tmp_path, target, seconds, "onnx", export_resize=True)
    assert caplog.messages == [
        f"onnx not written: {reason}; later: python -m cocoseg.export "
        f"checkpoint={tmp_path}/segmentation_model.pth formats=onnx network={target} export_resize=true"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["segmentation_model.pth"]


def test_nothing_is_begun_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extra_formats.subprocess, "run", lambda *args, **options: pytest.fail("it was begun"))
    with caplog.at_level(logging.WARNING):
        write_in(tmp_path, "tiny.Reads", 300, "onnx", "torch_export", stopped=True)
    assert [text.partition(";")[0] for text in caplog.messages] == [
        "onnx not written: a signal ended the run",
        "torch_export not written: a signal ended the run",
    ]
