"""Jobs side by side on one machine, each in a fresh process with its share of GPUs and cores. No torch."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from cocoseg.cli import JobFailedError
from cocoseg.errors import CocosegError, count_of
from cocoseg.files import from_here
from cocoseg.overrides import key_of
from cocoseg.run_folder import FAILED, FINISHED, STOPPED, Outcome
from cocoseg.workers import PARENT, SIGNALS, available_cores, exit_code

log = logging.getLogger(__name__)

OUTPUT = "console.log"  # file in the job's folder
POLL_EVERY = 0.1  # seconds
LIST_GPUS = ("nvidia-smi", "--list-gpus")
NOT_FOR_JOBS = ("hydra.mode", "hydra.run.dir", "hydra.job.num", "hydra.job.id")
FLAGS = ("config-dir", "config-name", "config-path")  # Hydra's, which jobs get too


@dataclass
class Job:
    """A job of a multirun and, once it has started, its process.

    Attributes:
        slot: index among the jobs that run at the same time; its GPUs and cores follow from it.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    process: subprocess.Popen[bytes] = field(init=False)
    slot: int = 0


def launch(
    config: DictConfig,
    config_loader: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None,
) -> list[JobReturn]:
    """Run jobs as Hydra's launchers do; the return value of a job is its mIoU.

    Args:
        first: number of the first job.
        n_jobs: jobs at a time, see `count_side_by_side`.

    Raises:
        SystemExit: a signal has come, and all jobs have ended.
    """
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = [_compose(config, config_loader, first + i, given) for i, given in enumerate(job_overrides)]
    side_by_side = count_side_by_side(n_jobs)
    log.info("%s, %d side by side", count_of(len(jobs), "job"), min(len(jobs), side_by_side))
    received: list[signal.Signals] = []
    returns = {job.number: job_return(job, bool(received)) for job in run_jobs(jobs, side_by_side, received)}
    if received:
        sys.exit(exit_code(received[0]))
    return [returns[job.number] for job in jobs]


def run_jobs(jobs: Sequence[Job], side_by_side: int, received: list[signal.Signals]) -> Iterator[Job]:
    """Run jobs side by side, and yield each when its process has ended.

    A signal is passed on to the jobs, which then save and export; a second one ends them at once. No further
    job starts.

    Args:
        side_by_side: number of jobs at a time. Each has an equal share of GPUs and cores, also where fewer
            jobs are left.
        received: signals that come are appended to it.
    """
    waiting, passed_on = list(jobs), 0
    running: list[Job] = []
    gpus = _shares_of_gpus(side_by_side)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    handlers = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        while running or (waiting and not received):
            for slot in sorted(set(range(side_by_side)) - {job.slot for job in running}):
                if waiting and not received:
                    job = waiting.pop(0)
                    _start(job, slot, side_by_side, gpus[slot])
                    running.append(job)
            time.sleep(POLL_EVERY)
            # Not in `note`, during which a job may be starting whose process is not known yet.
            for number in received[passed_on:]:
                for job in running:
                    job.process.send_signal(number)
                passed_on += 1
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                yield job
    finally:
        for job in running:  # only after an error: no process stays behind
            job.process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(job: Job, slot: int, side_by_side: int, gpus: str | None) -> None:
    """Start a job's process on its share of the cores, and on these GPUs."""
    job.folder.mkdir(parents=True, exist_ok=True)
    job.slot = slot
    variables = {"PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    if not hasattr(os, "sched_setaffinity"):
        variables["OMP_NUM_THREADS"] = str(max(1, available_cores() // side_by_side))
    if gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    with (job.folder / OUTPUT).open("ab") as output:
        job.process = subprocess.Popen(
            command(job),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,  # so that a terminal's Ctrl-C reaches it once, through this process
        )
    if hasattr(os, "sched_setaffinity"):  # torch starts a thread per core that it may use
        cores = sorted(os.sched_getaffinity(0))
        with suppress(OSError):
            os.sched_setaffinity(job.process.pid, cores[slot::side_by_side] or cores)


def count_side_by_side(n_jobs: int | None) -> int:
    """Number of jobs at a time. None: one per GPU, or one; -1: one per core, as in joblib."""
    if n_jobs is None:
        return max(1, len(visible_gpus()))
    return n_jobs if n_jobs > 0 else available_cores()


def visible_gpus() -> list[str]:
    """GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(LIST_GPUS, capture_output=True, text=True, timeout=30, check=True).stdout
        count = sum(line.startswith("GPU ") for line in listed.splitlines())
        return [str(index) for index in range(count)]
    return []


def _shares_of_gpus(count: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each of `count` jobs; None without GPUs."""
    gpus = visible_gpus()
    if not gpus:
        return [None] * count
    return [",".join(gpus[index::count] or [gpus[index % len(gpus)]]) for index in range(count)]


def command(job: Job) -> list[str]:
    """Command line of a single run in the job's folder."""
    given, _ = get_args_parser().parse_known_args()
    flags = [f"--{flag}={value}" for flag in FLAGS if (value := getattr(given, flag.replace("-", "_")))]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name] if module is not None else [sys.argv[0]]
    of_hydra = [item for item in job.config.hydra.overrides.hydra if key_of(item) not in NOT_FOR_JOBS]
    of_task = list(filter_overrides(job.overrides))
    added = [
        "hydra.mode=RUN",
        f"hydra.run.dir={QuotedString(str(job.folder), Quote.double).with_quotes()}",
        f"hydra.job.num={job.number}",
        f"hydra.job.id={job.number}",
    ]
    return [sys.executable, *program, *flags, *of_task, *of_hydra, *added]


def _compose(config: DictConfig, config_loader: Any, number: int, overrides: Sequence[str]) -> Job:
    composed = config_loader.load_sweep_config(config, list(overrides))
    trial = OmegaConf.select(composed, "sweep.trial")
    number = number if trial is None else trial  # numbers of resumed trials may have gaps
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    folder = Path(composed.hydra.sweep.dir, str(composed.hydra.sweep.subdir)).absolute()
    return Job(number, list(overrides), composed, folder)


def job_return(job: Job, was_stopped: bool) -> JobReturn:
    """Log how a job has ended, write the outcome of one that died, and return Hydra's record of it.

    Args:
        was_stopped: a signal was passed on to the jobs.
    """
    code = job.process.returncode
    ended = Outcome(STOPPED, f"exit code {code}") if code else Outcome(FINISHED)
    outcome = Outcome.read(job.folder) or ended
    # A job that a signal ends before it has a handler has not failed: it starts again when the sweep goes on.
    if code and outcome.state != FAILED and not was_stopped and code not in map(exit_code, SIGNALS):
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        outcome = Outcome(FAILED, f"{reason}, see {from_here(job.folder / OUTPUT)}")
        with suppress(CocosegError):
            outcome.write(job.folder)
    score = "" if outcome.miou is None else f"mIoU {outcome.miou:.3f}"
    log.info("job %d %s: %s  %s", job.number, outcome.state, outcome.reason or score, from_here(job.folder))
    if not code:
        return JobReturn(job.overrides, status=JobStatus.COMPLETED, _return_value=outcome.miou)
    error = JobFailedError(outcome.reason)
    return JobReturn(job.overrides, status=JobStatus.FAILED, _return_value=error)
