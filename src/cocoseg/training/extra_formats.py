"""Other formats of the model at the end of a run, in the time that is left."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cocoseg.budget.budget import END
from cocoseg.budget.open_run import Run
from cocoseg.config import Config
from cocoseg.files import PART, from_here
from cocoseg.inference.export_formats import FORMATS
from cocoseg.networks.model_file import NETWORKS

log = logging.getLogger(__name__)


def write_formats(config: Config, run: Run, model: Path, target: str, *, stopped: bool) -> None:
    """Write the model in the other formats of `export`, each in a process that is killed when time is up.

    For a format that can't be written, a warning names the command that writes it later. After a signal none
    is begun, because its sender may kill this process soon.

    Args:
        model: the exported `pth` file.
        target: `_target_` of its network.
        stopped: a signal ended the run.
    """
    options = [] if target in NETWORKS else [f"network={target}"]
    options += ["export_resize=true"] * config.export_resize
    for name in dict.fromkeys(name for name in config.export if name in FORMATS):
        arguments = ["-m", "cocoseg.export", f"checkpoint={from_here(model)}", f"formats={name}", *options]
        problem = "a signal ended the run" if stopped else _run_python(arguments, run)
        if problem:
            for part in model.parent.glob(f"{PART}*{FORMATS[name]}"):
                part.unlink(missing_ok=True)
            log.warning("%s not written: %s; later: python %s", name, problem, shlex.join(arguments))


def _run_python(arguments: Sequence[str], run: Run) -> str:
    """Run Python in the time that is left, and log what it prints. Returns why it failed."""
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seconds = None if run.budget.limit is None else run.budget.left() - END
    with run.budget.saving("extra_formats"):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return "there was no time left"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
    log.info(done.stdout.strip())
    return ""
