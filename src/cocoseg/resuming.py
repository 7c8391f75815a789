"""Going on with a run: its checkpoint, and the time that it has used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cocoseg.budget import Budget, open_budget
from cocoseg.config import Config
from cocoseg.durations import clock, in_seconds
from cocoseg.errors import CocosegError
from cocoseg.files import remove_parts
from cocoseg.ledger import LEDGER, read_ledger

PATIENCE = 15.0  # seconds: loaders outlive a killed process by some, and hold its lock


def continue_run(config: Config, run_dir: Path, *, limit_is_typed: bool) -> Budget:
    """Find the checkpoint to go on from (it becomes `config.ckpt_path`) and open the run's budget.

    Args:
        config: all settings.
        run_dir: of this attempt; with `resume=auto` of the earlier ones too.
        limit_is_typed: `trainer.max_time` stands on the command line; it then wins over the stored one.

    Raises:
        CocosegError: the ledger is damaged, or the time is spent and there is nothing to export.
    """
    if config.resume == "auto" and (newest := _newest(run_dir / "checkpoints")):
        config.ckpt_path = str(newest)
    folder = run_dir
    if config.ckpt_path is not None and not (run_dir / LEDGER).exists():
        folder = Path(config.ckpt_path).resolve().parent.parent
    goes_on = config.ckpt_path is not None or config.resume is not None
    ledger = read_ledger(folder / LEDGER) if goes_on else None
    limit = in_seconds(config.time_limit)
    if ledger is not None and not limit_is_typed:
        limit = ledger["limit"]
    extension = in_seconds(config.budget.extend)
    budget = open_budget(limit)
    budget.resume(ledger)
    if extension is not None and limit is not None:
        # The same command may be started again by a scheduler, before the run has come to its end.
        if ledger is None or ledger["finished"] or ledger["extended"] != extension or limit_is_typed:
            budget.limit = limit + extension
        budget.extended = extension
    if budget.is_spent() and config.ckpt_path is None:
        raise CocosegError(
            f"{run_dir}: {clock(budget.used())} of {clock(limit)} are used, and there is no checkpoint to "
            'export; add time with budget.extend="00:01:00:00"'
        )
    return budget


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of the run folder, and clear away what a killed one left unfinished there.

    Raises:
        CocosegError: another process trains there.
    """
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise CocosegError(f"run_dir: another process trains in {run_dir}; name another folder") from error
    try:
        for folder in (run_dir, run_dir / "checkpoints"):
            remove_parts(folder)
        yield
    finally:
        lock.release()


def _newest(folder: Path) -> Path | None:
    """The checkpoint that was written last: the best one may be younger than the one of every few minutes."""
    there = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def best_beside(checkpoint: Path) -> Path:
    """The best checkpoint of the run that a checkpoint belongs to."""
    best = checkpoint.with_name("best.ckpt")
    return best if best.is_file() else checkpoint
