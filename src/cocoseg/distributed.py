"""What the processes of one training tell each other: the first one's word, and what any of them noticed.

They talk on the CPU (gloo), beside the gradients: no GPU is waited for, and waiting has no end while one
process prepares the data or writes a file. In a training of one process nothing here costs anything.
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
from cocoseg.networks.device import uses_cuda
from cocoseg.ranks import is_rank_zero, may_be_several

PATIENCE = timedelta(days=30)  # preparing a large data set takes longer than torch's half an hour
ENGINE = ("_target_", "accelerator", "devices", "num_nodes", "strategy")  # what of a trainer makes processes

_talk: dist.ProcessGroup | None = None
_local_rank = 0


def join(trainer: Mapping[str, Any]) -> None:
    """Start the other processes of this training, as Lightning does, unless torchrun or Slurm has; meet them.

    Lightning would do so when training begins; here everything before that can be agreed on, too.

    Args:
        trainer: settings of the trainer; for one device nothing happens.

    Raises:
        CocosegError: the settings don't make a trainer.
    """
    global _talk, _local_rank
    if not may_be_several(trainer) or _talk is not None:
        return
    if trainer.get("sync_batchnorm") and not uses_cuda(dict(trainer)):
        raise CocosegError("trainer.sync_batchnorm needs GPUs; on CPUs set it to false")
    engine = {key: trainer[key] for key in ENGINE if key in trainer}
    silent = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    strategy = build(engine, "trainer", **silent).strategy
    if strategy.launcher is None:
        return
    strategy.launcher.launch(strategy.setup_environment)
    if (dist.get_rank() == 0) != is_rank_zero(trainer):
        raise RuntimeError(f"by its environment this is not the process of rank {dist.get_rank()}")
    _talk = dist.new_group(backend="gloo", timeout=PATIENCE)
    _local_rank = strategy.local_rank


def count() -> int:
    """How many there are, on all machines."""
    return 1 if _talk is None else dist.get_world_size()


def rank() -> int:
    """The number of this one; the first one, 0, leads."""
    return 0 if _talk is None else dist.get_rank()


def is_first_of_machine() -> bool:
    return _local_rank == 0


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        dist.all_reduce(torch.zeros(1), group=_talk)  # a barrier has a time limit of its own


def told(value: Any) -> Any:
    """The first process's value: anything that can be pickled. For once, not for every step."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_talk)
    return values[0]


def agreed(*values: float, noticed: int = 0) -> tuple[float, ...]:
    """What the first process says, and last the largest of what any of them noticed, in one exchange.

    Clocks of their own make processes drift apart: they would learn at other rates, stop at other steps.
    """
    if count() == 1:
        return *values, noticed
    own = values if rank() == 0 else [-torch.inf] * len(values)
    numbers = torch.tensor([*map(float, own), float(noticed)], dtype=torch.float64)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=_talk)
    return tuple(numbers.tolist())


class SameStatistics(L.Callback):
    """Gives all processes the BatchNorm statistics of rank 0 before a validation.

    Each process gathers those of its own images, and the model that is saved, rank 0's, is to be validated by
    all. Done with the first batch: by then a callback that averages weights has put the average in place.
    """

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if batch_idx == 0 and count() > 1:
            for buffer in pl_module.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Report the end of another process of this training in one line, on rank 0; other ranks just end.

    Raises:
        TrainingError: instead of the error of the connection.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        if rank() > 0:
            sys.exit(1)
        raise TrainingError("another process of this training has ended, see above") from error


def _is_lost(error: BaseException) -> bool:
    """Whether an error is raised here because another process has ended."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        words in said for words in ("connection closed by peer", "connection reset by peer", "gloo")
    )
