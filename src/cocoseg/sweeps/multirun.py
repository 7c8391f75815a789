"""Rules for every multirun. No torch unless a job has loaded it.

One process owns its folder, signals end it in order, no job changes the next, the leaderboard is written.
"""

import atexit
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from cocoseg.errors import CocosegError, report_errors
from cocoseg.files import from_here, locked
from cocoseg.overrides import pass_to_jobs
from cocoseg.run_folder import FAILED, OUTCOME, Outcome
from cocoseg.workers import SIGNALS, end_at_next_signal, exit_code


class MultirunInOrder(Callback):
    """Hydra's callback at the start of a multirun, and around each job in the process that runs it."""

    def __init__(self) -> None:
        self._job = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        sweep_dir = Path(config.hydra.sweep.dir).absolute()
        with report_errors():
            if "submitit" in config.hydra.launcher._target_ and find_spec("submitit") is None:
                raise CocosegError("submitit is not installed; pip install hydra-submitit-launcher")
            owned = ExitStack()
            owned.enter_context(locked(sweep_dir, key="sweep.name, hydra.sweep.dir"))
        atexit.register(owned.close)
        # Not at `on_multirun_end`, which is left out when a job has failed or a signal has come.
        atexit.register(_end_multirun, sweep_dir)
        pass_to_jobs(config)
        for number in SIGNALS:
            signal.signal(number, _leave)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            self._job.enter_context(isolate_job())

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status == JobStatus.FAILED:
            forget_frames(job_return._return_value)
        self._job.close()


def _leave(number: int, frame: FrameType | None) -> None:
    """Handler of signals while no training has its own."""
    end_at_next_signal()
    sys.exit(exit_code(signal.Signals(number)))


def _end_multirun(sweep_dir: Path) -> None:
    end_at_next_signal()
    _list_failures(sweep_dir)
    if not any(path.is_dir() for path in sweep_dir.iterdir()):  # no job has begun
        (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
    else:
        from cocoseg.sweeps.leaderboard import read_rows, write_table

        try:
            if rows := read_rows(sweep_dir):
                write_table(sweep_dir, rows)
        except CocosegError as error:
            print(f"leaderboard: {error.sentence}", file=sys.stderr)


def _list_failures(sweep_dir: Path) -> None:
    files = sorted(sweep_dir.rglob(OUTCOME), key=lambda file: (len(str(file)), file))  # 10 after 9
    outcomes = [(from_here(file.parent), Outcome.read(file.parent)) for file in files]
    reasons = [f"{job}: {end.reason}" for job, end in outcomes if end is not None and end.state == FAILED]
    if reasons:
        print(f"failed: {len(reasons)}", *reasons, sep="\n  ", file=sys.stderr)


@contextmanager
def isolate_job() -> Iterator[None]:
    """Restore after a job what it may have changed for the whole process, and free its memory."""
    environment = dict(os.environ)
    benchmark, is_deterministic, warns, precision = False, False, False, "highest"  # as torch begins
    if torch := sys.modules.get("torch"):
        benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
        is_deterministic = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
    gc.collect()  # trainers and their callbacks refer to each other
    if torch := sys.modules.get("torch"):
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns)
        torch.set_float32_matmul_precision(precision)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def forget_frames(error: BaseException | None) -> None:
    """Clear the frames of a job's exception: Hydra keeps it, and they would keep the network and its data."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
