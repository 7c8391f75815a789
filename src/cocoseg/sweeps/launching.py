"""Jobs side by side on one machine, each in a fresh process with its share of GPUs and cores. No torch."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from cocoseg.cli import JobFailedError, remember_failure
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.overrides import key_of
from cocoseg.ranks import may_be_several
from cocoseg.run_folder import FAILED, Outcome
from cocoseg.workers import PARENT, SIGNALS, available_cores, exit_code

log = logging.getLogger(__name__)

OUTPUT = "console.log"  # file in the job's folder
POLL_EVERY = 0.1  # seconds
LIST_GPUS = ("nvidia-smi", "--list-gpus")
NOT_FOR_JOBS = ("hydra.mode", "hydra.run.dir", "hydra.job.num", "hydra.job.id")
FLAGS = ("config-dir", "config-name", "config-path")  # Hydra's, which jobs get too


@dataclass
class Job:
    """A job and, once it has started, its process.

    Attributes:
        number: index of the job in the sweep.
        config: composed for this job.
        folder: run folder.
        slot: index among the jobs that run at the same time, which decides on GPUs and cores.
        started: `time.monotonic()`.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    started: float = 0.0


class Pool:
    """Runs jobs side by side. A signal is passed on to them, and no further job starts.

    Args:
        jobs: in the order in which they start.
        side_by_side: number of jobs at a time.
    """

    def __init__(self, jobs: list[Job], side_by_side: int):
        self.jobs = jobs
        self.slots = max(1, side_by_side)
        self.side_by_side = min(self.slots, len(jobs))
        self.gpus = visible_gpus()
        self.running: list[Job] = []
        self._signals: list[signal.Signals] = []  # all that were received
        self._passed_on = 0  # number of those that the jobs have got

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that was received."""
        return self._signals[0] if self._signals else None

    def run(self) -> Iterator[Job]:
        """Yield each job when its process has ended."""
        waiting = list(self.jobs)
        handlers = {number: signal.signal(number, self._collect) for number in SIGNALS}
        try:
            while self.running or (waiting and self.received is None):
                for slot in sorted(set(range(self.side_by_side)) - {job.slot for job in self.running}):
                    if waiting and self.received is None:
                        self._start(waiting.pop(0), slot)
                time.sleep(POLL_EVERY)
                self._pass_on()
                for job in [job for job in self.running if job.process.poll() is not None]:
                    self.running.remove(job)
                    yield job
        finally:
            for job in self.running:  # only after an error: no process stays behind
                job.process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _start(self, job: Job, slot: int) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.slot, job.started = slot, time.monotonic()
        with (job.folder / OUTPUT).open("ab") as output:
            job.process = subprocess.Popen(
                command(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(job),
                start_new_session=True,  # a terminal's Ctrl-C reaches it through this process, once
            )
        self.running.append(job)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            with suppress(OSError):
                os.sched_setaffinity(job.process.pid, cores[slot :: self.side_by_side] or cores)

    def _environment(self, job: Job) -> dict[str, str]:
        own = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
        if not may_be_several(OmegaConf.to_container(job.config).get("trainer", {})):
            # With several processes Lightning divides the job's cores itself, unless the variable is set.
            own.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // self.side_by_side)))
        if self.gpus:
            # By all slots, not by those in use, so that the last trial of a sweep has as many as the others.
            share = self.gpus[job.slot :: self.slots] or [self.gpus[job.slot % len(self.gpus)]]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        return own

    def _collect(self, number: int, frame: FrameType | None) -> None:
        # Passed on later: a job may be starting just now, whose process is not known yet.
        self._signals.append(signal.Signals(number))

    def _pass_on(self) -> None:
        """Send the first signal to the jobs, which then save and export. A second one kills them."""
        for number in self._signals[self._passed_on :]:
            for job in self.running:
                job.process.send_signal(signal.SIGKILL if self._passed_on else number)
            self._passed_on += 1


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


def launch(
    config: DictConfig,
    config_loader: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None,
) -> list[JobReturn]:
    """Run jobs as Hydra's launchers do.

    Args:
        config: configuration of the multirun.
        config_loader: Hydra's.
        job_overrides: overrides of each job.
        first: number of the first job.
        n_jobs: see `count_side_by_side`.

    Returns:
        record of each job; its value is the validation mIoU.
    """
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = [_compose(config, config_loader, first + i, given) for i, given in enumerate(job_overrides)]
    pool = Pool(jobs, count_side_by_side(n_jobs))
    log.info("%d jobs, %d side by side", len(jobs), pool.side_by_side)
    returns = {job.number: _to_return(job, pool.received) for job in pool.run()}
    if pool.received is not None:
        sys.exit(exit_code(pool.received))
    return [returns[job.number] for job in jobs]


def command(job: Job) -> list[str]:
    """Command line of a single run in the job's folder."""
    given, _ = get_args_parser().parse_known_args()
    flags = [f"--{flag}={value}" for flag in FLAGS if (value := getattr(given, flag.replace("-", "_")))]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name] if module is not None else [sys.argv[0]]
    of_hydra = [item for item in job.config.hydra.overrides.hydra if key_of(item) not in NOT_FOR_JOBS]
    of_task = list(filter_overrides(job.overrides))
    own = [
        "hydra.mode=RUN",
        f"hydra.run.dir={QuotedString(str(job.folder), Quote.double).with_quotes()}",
        f"hydra.job.num={job.number}",
        f"hydra.job.id={job.number}",
    ]
    return [sys.executable, *program, *flags, *of_task, *of_hydra, *own]


def _compose(config: DictConfig, config_loader: Any, number: int, overrides: Sequence[str]) -> Job:
    composed = config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    folder = Path(composed.hydra.sweep.dir, str(composed.hydra.sweep.subdir)).absolute()
    return Job(number, list(overrides), composed, folder)


def _to_return(job: Job, received: signal.Signals | None = None) -> JobReturn:
    """Hydra's record of a job that has ended; logs a line about it.

    Args:
        received: signal that was passed on to the jobs.
    """
    code, seconds = job.process.returncode, time.monotonic() - job.started
    # A job that a signal ends before it has a handler has not failed: it starts again when the sweep goes on.
    stopped = received is not None or code in map(exit_code, SIGNALS)
    outcome = Outcome.read(job.folder) if stopped or not code else _failure(job)
    if not code:
        state = "done" if outcome is None else outcome.state
        miou = outcome and outcome.miou
        score = "" if miou is None else f", mIoU {miou:.3f}"
        log.info("job %d %s after %.0f s%s  %s", job.number, state, seconds, score, from_here(job.folder))
        return JobReturn(job.overrides, status=JobStatus.COMPLETED, _return_value=miou)
    failed = outcome is not None and outcome.state == FAILED
    reason = outcome.reason if failed else f"exit code {code}"
    log.info("job %d %s after %.0f s: %s", job.number, "failed" if failed else "stopped", seconds, reason)
    if failed:
        remember_failure(job.number, f"job {job.number} ({job.config.hydra.job.override_dirname})", reason)
    error = JobFailedError(f"error: {reason}")
    return JobReturn(job.overrides, status=JobStatus.FAILED, _return_value=error)


def _failure(job: Job) -> Outcome:
    """Outcome of a job that failed: its own or, written into its folder now, how its process ended."""
    outcome = Outcome.read(job.folder)
    if outcome is None or outcome.state != FAILED:
        code = job.process.returncode
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        outcome = Outcome(FAILED, f"{reason}, see {from_here(job.folder / OUTPUT)}")
        with suppress(CocosegError):
            outcome.write(job.folder)
    return outcome
