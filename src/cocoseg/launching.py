"""Jobs side by side on one machine, each in a fresh process: nothing leaks from one to the next. No torch."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict

from cocoseg.cli import JobFailedError, remember_failure
from cocoseg.cores import available_cores
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.outcome import FAILED, Outcome
from cocoseg.ranks import may_be_several
from cocoseg.signals import PARENT, SIGNALS, exit_code
from cocoseg.slots import jobs_side_by_side, visible_gpus

log = logging.getLogger(__name__)

OUTPUT = "console.log"  # in a job's folder
LOOK_EVERY = 0.1  # seconds between looks at the processes
NOT_FOR_JOBS = ("hydra.mode", "hydra.run.dir", "hydra.job.num", "hydra.job.id")
WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")


@dataclass
class Job:
    """A job and, once it has begun, its process.

    Attributes:
        number: of the job in the sweep.
        overrides: of the task and of Hydra.
        config: the composed configuration.
        folder: of the run.
    """

    number: int
    overrides: list[str]
    config: DictConfig
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0
    began: float = 0.0

    @property
    def told(self) -> str:
        return " ".join(filter_overrides(self.overrides))


class Pool:
    """Runs jobs side by side; a signal is passed on to them, and no further one begins.

    Args:
        jobs: in the order in which they begin.
        side_by_side: how many at a time.
    """

    def __init__(self, jobs: list[Job], side_by_side: int):
        self.jobs = jobs
        self.slots = max(1, side_by_side)
        self.side_by_side = min(self.slots, len(jobs))
        self.gpus = visible_gpus()
        self.running: list[Job] = []
        self._signals: list[signal.Signals] = []  # that have come
        self._passed_on = 0  # of them

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that has come."""
        return self._signals[0] if self._signals else None

    def run(self) -> Iterator[Job]:
        """Yield each job when its process has ended."""
        waiting = list(self.jobs)
        with self._noting_signals():
            try:
                while self.running or (waiting and self.received is None):
                    free = set(range(self.side_by_side)) - {job.slot for job in self.running}
                    for slot in sorted(free):
                        if waiting and self.received is None:
                            self._begin(waiting.pop(0), slot)
                    time.sleep(LOOK_EVERY)
                    self._pass_on()
                    for job in [job for job in self.running if job.process.poll() is not None]:
                        self.running.remove(job)
                        yield job
            finally:
                for job in self.running:  # an error of ours: no process stays behind
                    job.process.kill()

    def _begin(self, job: Job, slot: int) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.slot, job.began = slot, time.monotonic()
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
        if not may_be_several(OmegaConf.to_container(job.config.get("trainer", OmegaConf.create()))):
            # Else Lightning divides the job's cores among its processes, where nobody has said otherwise.
            own.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // self.side_by_side)))
        if self.gpus:
            # By the slots that there are, not by those in use: the last trial of a sweep is as the others.
            share = self.gpus[job.slot :: self.slots] or [self.gpus[job.slot % len(self.gpus)]]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(share)
        return own

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # No more than that: a job may be about to begin, whose process is not known yet.
        self._signals.append(signal.Signals(number))

    def _pass_on(self) -> None:
        """The first signal as it is, after which jobs save and export; a second one ends them at once."""
        for number in self._signals[self._passed_on :]:
            for job in self.running:
                job.process.send_signal(signal.SIGKILL if self._passed_on else number)
            self._passed_on += 1


def launch(
    config: DictConfig,
    config_loader: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None,
) -> list[JobReturn]:
    """Run jobs as Hydra's launchers do.

    Args:
        config: of the multirun.
        config_loader: Hydra's.
        job_overrides: of each job.
        first: number of the first job.
        n_jobs: see `jobs_side_by_side`.

    Returns:
        in the order of the jobs; a job's value is its validation mIoU.
    """
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    jobs = [_composed(config, config_loader, first + i, told) for i, told in enumerate(job_overrides)]
    pool = Pool(jobs, jobs_side_by_side(n_jobs))
    log.info("%d jobs, %d side by side", len(jobs), pool.side_by_side)
    returns = {job.number: _returned(job, pool.received) for job in pool.run()}
    if pool.received is not None:
        sys.exit(exit_code(pool.received))
    return [returns[job.number] for job in jobs]


def command(job: Job) -> list[str]:
    """A single run that finds itself in the job's folder."""
    given = sys.argv[1:]
    flags = []
    for i, word in enumerate(given):
        if word in WITH_VALUE:
            flags += given[i : i + 2]
        elif word.startswith(WITH_VALUE) and "=" in word:
            flags.append(word)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", module.name] if module is not None else [sys.argv[0]]
    of_hydra = [item for item in job.config.hydra.overrides.hydra if item.split("=")[0] not in NOT_FOR_JOBS]
    of_task = list(filter_overrides(job.overrides))
    own = [
        "hydra.mode=RUN",
        f"hydra.run.dir={_quoted(str(job.folder))}",
        f"hydra.job.num={job.number}",
        f"hydra.job.id={job.number}",
    ]
    return [sys.executable, *program, *flags, *of_task, *of_hydra, *own]


def _composed(config: DictConfig, config_loader: Any, number: int, overrides: Sequence[str]) -> Job:
    composed = config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    folder = Path(composed.hydra.sweep.dir, str(composed.hydra.sweep.subdir)).absolute()
    return Job(number, list(overrides), composed, folder)


def _returned(job: Job, received: signal.Signals | None = None) -> JobReturn:
    """What a job that has ended gives to Hydra; a line on the console says how it went.

    Args:
        received: a signal that jobs were told of.
    """
    code = job.process.returncode
    # One that a signal ends before it listens has not failed: it is begun anew when the sweep goes on.
    stopped = received is not None or code in map(exit_code, SIGNALS)
    outcome = Outcome.read(job.folder) if stopped or not code else _failure(job)
    failed = outcome is not None and outcome.state == FAILED
    result = JobReturn(
        overrides=list(job.overrides),
        hydra_cfg=OmegaConf.masked_copy(job.config, ["hydra"]),
        cfg=OmegaConf.masked_copy(job.config, [key for key in job.config if key != "hydra"]),
        working_dir=str(Path.cwd()),
        task_name=job.config.hydra.job.name,
    )
    seconds = time.monotonic() - job.began
    if code:
        result.status = JobStatus.FAILED
        reason = outcome.reason if failed else f"exit code {code}"
        result.return_value = JobFailedError(f"error: {reason}")
        verb = "failed" if failed else "stopped"
        log.info("job %d %s after %.0f s: %s", job.number, verb, seconds, reason)
        if failed:
            remember_failure(
                job.number, f"job {job.number} ({job.config.hydra.job.override_dirname})", reason
            )
        return result
    result.status = JobStatus.COMPLETED
    result.return_value = outcome and outcome.miou
    said = "" if outcome is None or outcome.miou is None else f", mIoU {outcome.miou:.3f}"
    state = "done" if outcome is None else outcome.state
    log.info("job %d %s after %.0f s%s  %s", job.number, state, seconds, said, from_here(job.folder))
    return result


def _failure(job: Job) -> Outcome:
    """How a job failed, by its own word or, left in its folder now, by how its process ended."""
    outcome = Outcome.read(job.folder)
    if outcome is None or outcome.state != FAILED:
        code = job.process.returncode
        reason = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        outcome = Outcome(FAILED, f"{reason}, see {from_here(job.folder / OUTPUT)}")
        with suppress(CocosegError):
            outcome.write(job.folder)
    return outcome


def _quoted(text: str) -> str:
    """As Hydra's command line takes any text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
