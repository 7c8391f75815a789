"""Exchange between the ranks of one training, beside Lightning's own.

It uses the CPU (gloo) and waits for no GPU, apart from the exchange of BatchNorm statistics. There is no
practical time limit, because a rank may prepare the data or write a file. With a single process everything
here returns at once.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from cocoseg.cli import build
from cocoseg.errors import CocosegError, TrainingError
from cocoseg.rank_environment import is_rank_zero, may_be_several

TIMEOUT = timedelta(days=30)  # torch's half an hour is too short to prepare a large data set
# Parts of the messages of errors, in lower case, where another process has ended.
CONNECTION_LOST = ("connection closed by peer", "connection reset by peer", "gloo")
# Settings of a trainer that decide which processes are started.
LAUNCH_SETTINGS = ("_target_", "accelerator", "devices", "num_nodes", "strategy")

_group: dist.ProcessGroup | None = None
_local_rank = 0


def join_ranks(trainer: Mapping[str, Any]) -> None:
    """Start the other ranks as Lightning does, unless torchrun or Slurm has, and connect to them.

    Lightning would do so when training begins. This is earlier, so that the ranks can agree before that, too.

    Args:
        trainer: settings of the trainer; for one device nothing happens.

    Raises:
        CocosegError: the settings don't make a trainer.
    """
    global _group, _local_rank
    if not may_be_several(trainer) or _group is not None:
        return
    if trainer.get("sync_batchnorm") and not torch.cuda.is_available():
        raise CocosegError("trainer.sync_batchnorm needs GPUs; on CPUs set it to false")
    engine = {key: trainer[key] for key in LAUNCH_SETTINGS if key in trainer}
    strategy = build(engine, "trainer").strategy
    if strategy.launcher is None:
        return
    strategy.launcher.launch(strategy.setup_environment)
    if (dist.get_rank() == 0) != is_rank_zero(trainer):
        raise RuntimeError(f"the environment of this process does not fit its rank, {dist.get_rank()}")
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _group = None if isinstance(group, int) else group  # a number for processes outside of the group
    _local_rank = strategy.local_rank


def world_size() -> int:
    """Number of ranks, on all machines."""
    return 1 if _group is None else dist.get_world_size()


def rank() -> int:
    """Rank of this process."""
    return 0 if _group is None else dist.get_rank()


def is_first_of_machine() -> bool:
    """Tell whether this is local rank zero."""
    return _local_rank == 0


def barrier() -> None:
    """Wait until all ranks are here."""
    largest(0)  # torch's own barrier has a shorter time limit


def broadcast(value: Any) -> Any:
    """Return rank zero's value, which is pickled: too slow for every step."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group)
    return values[0]


def largest(*values: float) -> tuple[float, ...]:
    """Return the largest of each value over all ranks, in one exchange."""
    if world_size() == 1:
        return values
    numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=_group)
    return tuple(numbers.tolist())


def from_rank_zero(*values: float) -> tuple[float, ...]:
    """Return rank zero's values, in one exchange.

    By its own clock each rank would use another learning rate and stop at another step.
    """
    return largest(*values) if rank() == 0 else largest(*[-torch.inf] * len(values))


class SyncBatchNormStatistics(L.Callback):
    """Gives all ranks the BatchNorm statistics of rank zero before a validation.

    Each rank has those of its own images, but all validate the model of rank zero, which is saved. The
    exchange comes with the first batch, after a callback that averages weights has put the average in place.
    """

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if batch_idx == 0 and world_size() > 1:
            for buffer in pl_module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Report the end of another rank in one line, on rank zero; other ranks just end.

    Raises:
        TrainingError: instead of the error of the connection.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).lower()
        is_lost = isinstance(error, dist.DistError) or any(words in message for words in CONNECTION_LOST)
        if world_size() == 1 or not is_lost:
            raise
        if rank() > 0:
            sys.exit(1)
        raise TrainingError("another process of this training has ended, see above") from error
