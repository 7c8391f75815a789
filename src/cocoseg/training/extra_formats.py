"""Other formats of the model at the end of a run, in the time that is left."""

import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from cocoseg.budget.budget import END
from cocoseg.budget.run import Run
from cocoseg.files import PART, from_here
from cocoseg.inference.export_formats import FORMATS
from cocoseg.networks.model_file import NETWORKS
from cocoseg.networks.spec import ModelSpec

log = logging.getLogger(__name__)


def write_formats(
    names: Sequence[str], run: Run, model_name: str, spec: ModelSpec, *, stopped: bool
) -> list[str]:
    """Write the exported model in other formats, each by a process that is ended when the time is up.

    A format that is not written is a warning with the command that writes it later.

    Args:
        names: keys of FORMATS; others, such as `pth`, are left out.
        run: its folder holds the model file `model_name`.
        spec: description of the model.
        stopped: write none, because the sender of the signal may kill the process soon.

    Returns:
        A line about each file.
    """
    lines = []
    model = from_here(run.folder / model_name)
    target = spec.network["_target_"]
    for name in dict.fromkeys(name for name in names if name in FORMATS):
        command = ["-m", "cocoseg.export", f"checkpoint={model}", f"formats={name}"]
        if target not in NETWORKS:
            command.append(f"network={target}")
        line, problem = "", "a signal ended the run"
        if not stopped:
            with run.budget.saving("formats"):
                line, problem = _run_python(command, run.budget.left() - END)
        if problem:
            for part in run.folder.glob(f"{PART}*{FORMATS[name]}"):
                part.unlink(missing_ok=True)
            log.warning("%s not written: %s; later: python %s", name, problem, shlex.join(command))
        else:
            lines.append(line)
    return lines


def _run_python(arguments: Sequence[str], seconds: float) -> tuple[str, str]:
    """Run Python for so many seconds at most. Returns the last line that it printed, or why it failed."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=None if math.isinf(seconds) else max(0.0, seconds),
        )
    except subprocess.TimeoutExpired:
        return "", "there was no time left"
    printed = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    last = printed[-1] if printed else f"exit code {done.returncode}"
    return ("", last.removeprefix("error: ")) if done.returncode else (last, "")
