"""Open a training run: its locked folder, its budget, and the checkpoint that it resumes from. No torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cocoseg.budget.budget import Budget, no_time_left
from cocoseg.budget.ledger import keep_ledger, read_ledger
from cocoseg.cli import refuse_several_devices
from cocoseg.config import Config
from cocoseg.durations import begin_job, in_seconds
from cocoseg.errors import CocosegError
from cocoseg.files import from_here, remove_parts, write_bytes
from cocoseg.overrides import Command, command, is_overridden, key_of
from cocoseg.rank_environment import as_worker_rank, is_rank_zero
from cocoseg.run_folder import BEST, CHECKPOINTS, LAST, LEDGER, current_folder, open_folder


@dataclass
class Run:
    """A training run in progress.

    Attributes:
        folder: run folder.
        budget: time of the run.
        checkpoint: file to resume from; None for a new run.
        trained: epochs and steps of that checkpoint.
        command: overrides as typed.
        begin: writes `config.yaml`, `.hydra/` and the log; called when all checks have passed, before
            anything else is written to the folder.
    """

    folder: Path
    budget: Budget = field(default_factory=lambda: Budget(None))
    checkpoint: str | None = None
    trained: tuple[int, int] = (0, 0)
    command: Command = field(default_factory=Command)
    begin: Callable[[], None] = lambda: None

    def resume_command(self, *changed: str) -> Command:
        """Return the command that resumes this run, with some settings changed."""
        replaced = {"run_dir", "resume", "ckpt_path", *map(key_of, changed)}
        kept = [typed for typed in self.command.overrides if key_of(typed) not in replaced]
        folder = [typed for typed in self.command.overrides if key_of(typed) == "run_dir"]
        # A run that was resumed from another folder may not have a checkpoint yet.
        is_elsewhere = self.checkpoint is not None and not (self.folder / CHECKPOINTS / LAST).is_file()
        start = f"ckpt_path={self.checkpoint}" if is_elsewhere else "resume=auto"
        return Command((*kept, *(folder or [f"run_dir={from_here(self.folder)}"]), start, *changed))


@contextmanager
def open_run(cfg: DictConfig, config: Config) -> Iterator[Run]:
    """Open the run folder and begin to count the time. A rank above zero does neither.

    Args:
        cfg: as composed, for `config.yaml`.
        config: the same, resolved.

    Raises:
        CocosegError: the folder holds another run, another process trains there, the ledger is damaged, or
            the time is spent and there is nothing to export.
    """
    refuse_several_devices(config)
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores
    # a step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not is_rank_zero(config.trainer):
        with as_worker_rank():  # it ends the process after the block
            yield Run(current_folder(), command=command())
    resumes = config.ckpt_path is not None or config.resume is not None
    with open_folder(cfg, "train", key="run_dir", overwrite=resumes) as folder:
        remove_parts(folder.path / CHECKPOINTS)
        limit_is_typed = is_overridden("trainer.max_time")
        budget, checkpoint = resume_budget(config, folder.path, limit_is_typed=limit_is_typed)
        ledger = folder.path / LEDGER
        before = ledger.read_bytes() if ledger.exists() else None
        try:
            with keep_ledger(ledger, budget):  # from now on: a kill during the imports costs time, too
                yield Run(folder.path, budget, checkpoint, command=command(), begin=folder.begin)
                budget.finished = True
        except (CocosegError, OSError):
            if not folder.has_begun:  # a refused command changes nothing
                with suppress(CocosegError):  # a full disk may be what ended it
                    ledger.unlink(missing_ok=True) if before is None else write_bytes(ledger, before)
            raise


def resume_budget(config: Config, run_dir: Path, *, limit_is_typed: bool) -> tuple[Budget, str | None]:
    """Open the budget of a run, and find the checkpoint to resume from.

    Args:
        config: all settings.
        run_dir: folder of this attempt; with `resume=auto` of the earlier ones too.
        limit_is_typed: `trainer.max_time` is set on the command line, so it replaces the stored limit.

    Returns:
        The budget, and the checkpoint file or None.

    Raises:
        CocosegError: the ledger is damaged, or the time is spent and there is nothing to export.
    """
    checkpoint = config.ckpt_path
    if config.resume == "auto" and (newest := _newest(run_dir / CHECKPOINTS)):
        checkpoint = str(newest)
    folder = run_dir
    if checkpoint is not None and not (run_dir / LEDGER).exists():
        folder = Path(checkpoint).resolve().parent.parent
    resumes = checkpoint is not None or config.resume is not None
    ledger = read_ledger(folder / LEDGER) if resumes else None
    limit = _limit(config, ledger, is_typed=limit_is_typed)
    writes_formats = any(name != "pth" for name in config.export)
    budget = Budget(limit, began=begin_job(), writes_formats=writes_formats)
    budget.resume(ledger)
    budget.extended = in_seconds(config.budget.extend) or 0.0
    budget.end_by(config.deadline)
    if budget.is_spent() and checkpoint is None:
        reason = no_time_left(budget, "there is no checkpoint to export")
        raise CocosegError(f"{from_here(run_dir)}: {reason}")
    return budget, checkpoint


def _limit(config: Config, ledger: dict[str, Any] | None, *, is_typed: bool) -> float | None:
    """Limit of a run in seconds: that of its ledger or `trainer.max_time`, plus `budget.extend`."""
    limit, extension = in_seconds(config.time_limit), in_seconds(config.budget.extend) or 0.0
    # A run that Slurm or the time of day alone ended has no limit to keep.
    if ledger is not None and not is_typed and (ledger["limit"] or ledger["ends"] is None):
        limit = ledger["limit"]
        # A scheduler may start the same command again before the run has come to its end.
        if ledger["extended"] == extension and not ledger["finished"]:
            return limit
    return None if limit is None else limit + extension


def _newest(folder: Path) -> Path | None:
    """Find the checkpoint that was written last: the best one may be newer than `last.ckpt`."""
    there = [path for path in (folder / LAST, folder / BEST) if path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def best_beside(checkpoint: str | None) -> Path | None:
    """Find `best.ckpt` beside a checkpoint; where there is none, the checkpoint itself counts as the best."""
    if checkpoint is None:
        return None
    best = Path(checkpoint).with_name(BEST)
    return best if best.is_file() else Path(checkpoint)
