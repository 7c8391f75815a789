"""Which of several processes this one is, as far as its environment tells before torch is loaded.

One process leads: it keeps the time, writes the files and talks. The others follow it.
"""

import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocoseg.errors import CocosegError
from cocoseg.parallel import end_with_parent

# What says that a process is not the first one: of Slurm, of a user on several machines, of Lightning.
_NUMBERS = ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")


def may_be_several(trainer: Mapping[str, Any]) -> bool:
    """Whether these settings may make more than one process; how many devices `auto` is shows later."""
    if (trainer.get("num_nodes") or 1) != 1 or "ddp" in str(trainer.get("strategy")).lower():
        return True
    devices = trainer.get("devices", 1)
    return len(devices) != 1 if isinstance(devices, list) else str(devices) != "1"


def leads(trainer: Mapping[str, Any]) -> bool:
    """Whether this process is the only one, or the first of several."""
    if not may_be_several(trainer):
        return True
    if "RANK" in os.environ:  # torchrun counts for itself, within Slurm too
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def started_one_by_one(trainer: Mapping[str, Any]) -> bool:
    """Whether torchrun, Slurm or a user starts the processes, rather than the first one the others."""
    several_tasks = os.environ.get("SLURM_NTASKS", "1") != "1"
    return may_be_several(trainer) and (
        "RANK" in os.environ or several_tasks or (trainer.get("num_nodes") or 1) != 1
    )


@contextmanager
def following() -> Iterator[None]:
    """Around the work of a process that another one leads: it says nothing but what goes wrong in it, and
    ends with that one.

    It ends at once, without what Python does last: it has nothing to put away, and after an error others wait
    for it. The exit code is 0 whenever all end in order, for whoever started it would kill the others.
    """
    _hush()
    end_with_parent()
    code = 0
    try:
        yield
    except SystemExit as end:
        code = end.code or 0
    except CocosegError as error:
        print(f"process {_name()}: error: {error.sentence}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    for loader in multiprocessing.active_children():
        loader.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _hush() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
        if isinstance(handler, logging.FileHandler) and "_ddp_process_" in handler.baseFilename:
            Path(handler.baseFilename).unlink(missing_ok=True)  # Hydra's, of this process alone
    root.addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")


def _name() -> str:
    """As in `1`, or `0.1` for the second one of the first of several machines."""
    if "RANK" in os.environ:
        return os.environ["RANK"]
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return os.environ["SLURM_PROCID"]
    node, local = (os.environ.get(name, "0") for name in ("NODE_RANK", "LOCAL_RANK"))
    return local if node == "0" else f"{node}.{local}"
