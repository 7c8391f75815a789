"""The wheel and the editable install, each in an environment of its own, used from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

from conftest import ROOT, SMALL

COMMANDS = ("prepare", "train", "evaluate", "predict", "export", "leaderboard")
COMMANDS = [f"cocoseg-{name}" for name in COMMANDS]
DIFFERENT = [COMMANDS[0], *COMMANDS[4:]]  # the help of four commands is made by the same code
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


FOUND = """
from importlib.metadata import distribution
from cocoseg.config import conf_folder
print(conf_folder())
for entry in distribution("cocoseg").entry_points:
    if entry.group == "console_scripts":
        assert callable(entry.load())
        print(entry.name)
"""


class Installed:
    """cocoseg in an environment that finds everything else where these tests run, and no other cocoseg.

    Attributes:
        conf: folder of YAML files that it must find.
        home: where a user types the commands; empty at first.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.is_wheel = kind == "wheel"
        source = folder / "checkout"
        copytree(ROOT / "src", source / "src", ignore=ignore_patterns("*.egg-info", "__pycache__", "conf"))
        copytree(ROOT / "conf", source / "conf")
        for name in BUILT_FROM:
            copy(ROOT / name, source)
        self.conf = source / "conf"
        if self.is_wheel:  # as `python -m build` makes it: of the source distribution
            with tarfile.open(self._build("sdist", source, folder)) as archive:
                archive.extractall(folder, filter="data")
            (source,) = folder.glob("cocoseg-*/")
        self.wheel = self._build(kind, source, folder)
        venv.create(folder / "env", symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        pip = [sys.executable, "-m", "pip", f"--python={self.python}", "--disable-pip-version-check"]
        options = ("--quiet", "--no-index", "--no-deps", "--no-compile")
        self._run(*pip, "install", *options, str(self.wheel), cwd=folder)
        (packages,) = folder.glob("env/lib/python*/site-packages")
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        if self.is_wheel:
            self.conf = packages / "cocoseg" / "conf"
        self.home = folder / "home"
        self.home.mkdir()

    def _build(self, kind: str, source: Path, folder: Path) -> Path:
        """As pip does, without an environment of its own for the build. Returns the file."""
        build = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
        return folder / self._run(sys.executable, "-c", build, cwd=source).splitlines()[-1]

    def _run(self, *command: str, cwd: Path) -> str:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.Popen(
            [self.python.with_name(command), *arguments],
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *arguments: str) -> tuple[str, str, int]:
        """stdout, stderr and exit code."""
        process = self.start(command, *arguments)
        stdout, stderr = process.communicate(timeout=300)
        return stdout, stderr, process.returncode


# All tests run from an editable install, so that one is tried anyway.
@pytest.fixture(params=["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Installed:
    return Installed(tmp_path, request.param)


def test_all_is_found(installed: Installed):
    """The commands from a folder where nothing is, presets, and our launcher, whose module has our sweeper.

    One test, because an environment takes seconds to make.
    """
    commands = DIFFERENT if installed.is_wheel else COMMANDS  # the slow variant starts all
    helps = [installed.start(command, "--help") for command in commands]
    for command, process in zip(commands, helps, strict=True):
        text, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, ""), command
        assert command in text or f"-m cocoseg.{command.removeprefix('cocoseg-')}" in text
        assert "python " not in text.replace("python -m cocoseg", "")

    out, _, code = installed.run("cocoseg-prepare", "-m", "hydra/launcher=local", "data.root=a")
    assert code == 1
    assert "1 job, 1 side by side" in out
    (console,) = installed.home.glob("outputs/multirun/*/0/console.log")
    assert console.read_text().startswith("error: data.root: no folder a; ")  # a job that is refused is quick

    where, *commands = installed.run("python", "-c", FOUND)[0].splitlines()
    assert where == str(installed.conf)
    assert sorted(commands) == sorted(COMMANDS)
    assert "No module named cocoseg.predict" in installed.run("python", "-m", "cocoseg.predict")[1]
    if installed.is_wheel:
        check_wheel(installed)


def check_wheel(installed: Installed) -> None:
    """Everything of the checkout is in it and nothing else, and other Hydra programs find our presets."""
    conf, source = ROOT / "conf", ROOT / "src"
    expected = {f"cocoseg/conf/{path.relative_to(conf)}": path.read_bytes() for path in conf.rglob("*.yaml")}
    expected |= {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*.py")}
    expected["cocoseg/conf/__init__.py"] = b""
    for name in ("cocoseg/py.typed", "cocoseg/figures/gallery.html"):
        expected[name] = (source / name).read_bytes()
    with zipfile.ZipFile(installed.wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert content == expected
    compose = """
import cocoseg.cli
from hydra import compose, initialize
with initialize(None, version_base="1.3"):
    print(compose(overrides=["+augment=strong", "hydra.searchpath=[pkg://cocoseg.conf]"]).augment.rotate)
"""
    assert installed.run("python", "-c", compose) == ("15.0\n", "", 0)


@pytest.mark.slow
def test_from_photographs_to_masks(installed: Installed):
    """Training, scores, masks, another format and a sweep whose jobs have processes of their own."""
    small, model = (*SMALL, "trainer.max_steps=4"), "checkpoint=run/segmentation_model.pth"
    for command, *arguments in [
        ("cocoseg-train", *small, "run_dir=run", "export=[pth,torch_export]"),
        ("cocoseg-evaluate", model, "run_dir=scores"),
        ("cocoseg-predict", model, "input=data/shapes/images", "output=masks"),
        ("cocoseg-export", model, "formats=onnx"),
        (
            "cocoseg-train", *small, "sweep=random", "sweep.name=sweep", "sweep.trials=2",
            "hydra/launcher=local", "optimizer.lr=tag(log,interval(1e-4,1e-2))",
        ),
        ("cocoseg-leaderboard", "outputs/multirun/sweep"),
    ]:  # fmt: skip
        out, errors, code = installed.run(command, *arguments)
        assert code == 0, errors
    assert out.count("finished") == 2
    for path in ("run/segmentation_model.pt2", "run/segmentation_model.onnx", "scores/metrics.json"):
        assert (installed.home / path).is_file()
    assert len(list(installed.home.glob("masks/masks/*.png"))) == 12
