"""Rank of this process in a training on several devices, from its environment, before torch is loaded.

Rank zero keeps the time, writes the files and prints. The other ranks follow it.
"""

import logging
import multiprocessing
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cocoseg.errors import CocosegError
from cocoseg.workers import end_with_parent

# Environment variables that number processes: set by Slurm, by a user on several machines, by Lightning.
_NUMBERS = ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


def may_be_several(trainer: Mapping[str, Any]) -> bool:
    """Tell whether these settings may make more than one process; `auto` may turn out as one."""
    if (trainer.get("num_nodes") or 1) != 1 or "ddp" in str(trainer.get("strategy")).lower():
        return True
    devices = trainer.get("devices", 1)
    return len(devices) != 1 if isinstance(devices, list) else str(devices) != "1"


def is_rank_zero(trainer: Mapping[str, Any]) -> bool:
    """Tell whether this process is the only one, or rank zero of several."""
    if not may_be_several(trainer):
        return True
    if "RANK" in os.environ:  # torchrun counts for itself, within Slurm too
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def has_launcher(trainer: Mapping[str, Any]) -> bool:
    """Tell whether torchrun, Slurm or a user starts all ranks; if not, rank zero starts the others."""
    several_tasks = os.environ.get("SLURM_NTASKS", "1") != "1"
    return may_be_several(trainer) and (
        "RANK" in os.environ or several_tasks or (trainer.get("num_nodes") or 1) != 1
    )


@contextmanager
def as_worker_rank() -> Iterator[None]:
    """Run the block as a rank above zero: print nothing but errors, end with the parent process.

    Leaves by `os._exit` at once: nothing is left to clean up, and after an error other ranks wait for this
    one. The exit code is 0 on every orderly end, because torchrun kills all ranks on any other.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    end_with_parent()
    code = 0
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except CocosegError as error:
        print(f"process {os.getpid()} on {platform.node()}: error: {error.sentence}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    for loader in multiprocessing.active_children():
        loader.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
