"""Resume a run: its checkpoint, and the time that it has used. No torch."""

from pathlib import Path

from cocoseg.budget.budget import Budget, open_budget
from cocoseg.budget.ledger import read_ledger
from cocoseg.config import Config
from cocoseg.durations import clock, in_seconds
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.run_folder import CHECKPOINTS, LEDGER


def resume_budget(config: Config, run_dir: Path, *, limit_is_typed: bool) -> tuple[Budget, str | None]:
    """Open the budget of a run, and find the checkpoint to resume from.

    Args:
        config: all settings.
        run_dir: folder of this attempt; with `resume=auto` of the earlier ones too.
        limit_is_typed: `trainer.max_time` is set on the command line, and wins over the stored limit.

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
    limit = in_seconds(config.time_limit)
    if ledger is not None and not limit_is_typed:
        limit = ledger["limit"]
    extension = in_seconds(config.budget.extend)
    budget = open_budget(limit, writes_formats=any(name != "pth" for name in config.export))
    budget.resume(ledger)
    if extension is not None and limit is not None:
        # A scheduler may start the same command again before the run has come to its end.
        if ledger is None or ledger["finished"] or ledger["extended"] != extension or limit_is_typed:
            budget.limit = limit + extension
        budget.extended = extension
    if budget.is_spent() and checkpoint is None:
        raise CocosegError(
            f"{from_here(run_dir)}: {clock(budget.used())} of {clock(limit)} are used, and there is no "
            'checkpoint to export; add time with budget.extend="00:01:00:00"'
        )
    return budget, checkpoint


def _newest(folder: Path) -> Path | None:
    """Find the checkpoint that was written last: the best one may be newer than `last.ckpt`."""
    there = [path for path in (folder / "last.ckpt", folder / "best.ckpt") if path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime_ns, default=None)


def best_beside(checkpoint: str | None) -> Path | None:
    """Find the best checkpoint of the run that a checkpoint belongs to."""
    if checkpoint is None:
        return None
    best = Path(checkpoint).with_name("best.ckpt")
    return best if best.is_file() else Path(checkpoint)
