"""Open a training run: its locked folder, its clock, and the checkpoint that it resumes from. No torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from cocoseg.budget.budget import Budget
from cocoseg.budget.ledger import keep_ledger
from cocoseg.budget.resume import resume_budget
from cocoseg.cli import refuse_several_in
from cocoseg.config import Config
from cocoseg.errors import CocosegError
from cocoseg.files import remove_parts, write_bytes
from cocoseg.overrides import Command, command, is_overridden
from cocoseg.ranks import as_worker_rank, is_rank_zero
from cocoseg.run_folder import CHECKPOINTS, LEDGER, current_folder, open_folder


@dataclass
class Run:
    """A training run in progress.

    Attributes:
        folder: run folder.
        budget: clock of the run.
        checkpoint: file to resume from; None for a new run.
        command: overrides as typed.
        begin: writes `config.yaml` and the like; to be called once all checks have passed, before anything
            else is written to the folder.
    """

    folder: Path
    budget: Budget = field(default_factory=lambda: Budget(None))
    checkpoint: str | None = None
    command: Command = field(default_factory=Command)
    begin: Callable[[], None] = lambda: None


@contextmanager
def open_run(cfg: DictConfig, config: Config) -> Iterator[Run]:
    """Open the run folder and start the clock; on other ranks than zero of several, neither.

    Args:
        cfg: as composed, for `config.yaml`.
        config: the same, resolved.

    Raises:
        CocosegError: the folder holds another run, another process trains there, the ledger is damaged, or
            the time is spent and there is nothing to export.
    """
    refuse_several_in(config)
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores
    # a step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not is_rank_zero(config.trainer):
        with as_worker_rank():
            yield Run(current_folder())
    resumes = config.ckpt_path is not None or config.resume is not None
    with open_folder(cfg, "train", key="run_dir", overwrite=resumes) as folder:
        remove_parts(folder.path / CHECKPOINTS)
        limit_is_typed = is_overridden("trainer.max_time")
        budget, checkpoint = resume_budget(config, folder.path, limit_is_typed=limit_is_typed)
        ledger = folder.path / LEDGER
        before = ledger.read_bytes() if ledger.exists() else None
        try:
            with keep_ledger(ledger, budget):  # from now on: a kill during the imports costs time, too
                yield Run(folder.path, budget, checkpoint, command(), begin=folder.begin)
                budget.finished = True
        except CocosegError:
            if not folder.has_begun:  # a refused command changes nothing
                ledger.unlink() if before is None else write_bytes(ledger, before)
            raise
