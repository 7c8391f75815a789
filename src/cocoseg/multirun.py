"""What holds for every multirun: signals end it in order, no job leaves anything to the next, and the
leaderboard is written however it ends. No torch unless a job has loaded it."""

import atexit
import gc
import logging
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from cocoseg.command import tell_jobs
from cocoseg.errors import CocosegError
from cocoseg.signals import SIGNALS, exit_code

log = logging.getLogger(__name__)


class MultirunInOrder(Callback):
    """Hydra tells it when a multirun begins, and about each job where that runs.

    Args:
        leaderboard: the jobs are trainings, of which a table is wanted in the end.
    """

    def __init__(self, leaderboard: bool) -> None:
        self.leaderboard = leaderboard
        self._restore: Callable[[], None] | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "submitit" in config.hydra.launcher._target_ and find_spec("submitit") is None:
            print("error: submitit is not installed; pip install -e '.[slurm]'", file=sys.stderr)
            sys.exit(CocosegError.exit_code)
        if self.leaderboard:
            # Not at `on_multirun_end`, which is left out when a job has failed or a signal has come.
            atexit.register(_conclude, Path(config.hydra.sweep.dir).absolute())
        tell_jobs(config)
        for number in SIGNALS:
            signal.signal(number, _leave)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            self._restore = _switches()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if self._restore is not None:
            if job_return.status == JobStatus.FAILED:
                _forget_frames(job_return._return_value)
            self._restore()
            self._restore = None


def _leave(number: int, frame: FrameType | None) -> None:
    """A signal that comes while no training listens for it."""
    sys.exit(exit_code(signal.Signals(number)))


def _conclude(sweep_dir: Path) -> None:
    for number in SIGNALS:  # from here on they end the process at once
        signal.signal(number, signal.SIG_DFL)
    from cocoseg.leaderboard import conclude, read_rows

    try:
        rows = read_rows(sweep_dir)
    except CocosegError:  # no job has begun
        return
    try:
        conclude(sweep_dir, rows)
    except CocosegError as error:
        print(f"leaderboard: {error.sentence}", file=sys.stderr)


def _switches() -> Callable[[], None]:
    """Remember what a job may change for the whole process; the result sets it back and frees memory."""
    environment = dict(os.environ)
    filters = warnings.catch_warnings()
    filters.__enter__()
    numbers = random.getstate()
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}

    def restore() -> None:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        filters.__exit__()
        random.setstate(numbers)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        gc.collect()  # trainers and their callbacks refer to each other
        if "torch" in sys.modules:
            _reset_torch()

    return restore


def _reset_torch() -> None:
    """What a job's settings may have switched, to torch's own defaults, and the memory of its GPU."""
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.autograd.set_detect_anomaly(False)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _forget_frames(error: BaseException | None) -> None:
    """Hydra keeps a job's exception, whose frames keep the network and its data."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
