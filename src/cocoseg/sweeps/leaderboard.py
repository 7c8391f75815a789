"""The runs of a sweep, best first: `python -m cocoseg.sweeps.leaderboard outputs/multirun/<sweep>`.

Reads run folders only, so that it works on every sweep: one that is running or was killed, Hydra's own grid,
one that an older version made (a blank where it wrote no number of epochs). No torch.
"""

import csv
import io
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from omegaconf import OmegaConf
from yaml import YAMLError

from cocoseg.budget.ledger import LEDGER, read_ledger
from cocoseg.durations import clock
from cocoseg.errors import CocosegError, report_errors
from cocoseg.files import from_here, write_bytes
from cocoseg.run_folder import FAILED, RUNNING, STOPPED, Outcome

TABLE = "leaderboard.csv"
METRICS = "metrics.json"
ALIVE = 15.0  # seconds since the ledger was last written, after which a run counts as killed
ADDED_BY_SWEEP = ("sweep", "resume", "trainer.max_time")  # keys of overrides that are not the user's own
MAX_REASON = 60  # characters of a reason in the table


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        job: run folder, relative to the folder of the sweep.
        state: finished, pruned, stopped, failed or running.
        reason: reason of the state, empty for a run that ended as planned.
        miou: validation mIoU of the exported model.
        epochs: epochs trained; None where the run has not written them.
        seconds: time that all attempts used.
        overrides: value of each override of the command line, by key.
    """

    job: str
    state: str
    reason: str = ""
    miou: float | None = None
    epochs: int | None = None
    seconds: float | None = None
    overrides: dict[str, str] = field(default_factory=dict)


def read_rows(sweep_dir: Path) -> list[Row]:
    """All runs below a folder, the best first, those without a score last.

    Raises:
        CocosegError: there is none.
    """
    if not sweep_dir.is_dir():
        raise CocosegError(f"{sweep_dir}: no such folder")
    folders = {file.parent.parent for file in sweep_dir.rglob(".hydra/overrides.yaml")}
    folders |= {file.parent for file in sweep_dir.rglob("config.yaml") if file.parent.name != ".hydra"}
    if not folders:
        raise CocosegError(f"{sweep_dir}: no runs in it")
    rows = [_read_row(folder, folder.relative_to(sweep_dir).as_posix()) for folder in folders]
    return sorted(rows, key=lambda row: (row.miou is None, -(row.miou or 0.0), _natural_order(row.job)))


def swept(rows: list[Row]) -> list[str]:
    """The overrides in which the runs differ."""
    keys = dict.fromkeys(
        key for row in sorted(rows, key=lambda row: _natural_order(row.job)) for key in row.overrides
    )
    return [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]


def as_text(rows: list[Row]) -> str:
    """The table, aligned with blanks."""
    keys = swept(rows)
    lines = [["job", "mIoU", "epochs", "time", "state", *keys, ""]]
    for row in rows:
        miou = "" if row.miou is None else f"{row.miou:.3f}"
        epochs = "" if row.epochs is None else str(row.epochs)
        used = "" if row.seconds is None else clock(row.seconds)
        reason = row.reason if len(row.reason) <= MAX_REASON else f"{row.reason[: MAX_REASON - 1]}…"
        values = [row.overrides.get(key, "") for key in keys]
        lines.append([row.job, miou, epochs, used, row.state, *values, reason])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = ("mIoU", "epochs", "time")  # the columns of numbers
    return "\n".join(
        "  ".join(
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(lines[0], line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def as_csv(rows: list[Row]) -> str:
    """The table as CSV, with unrounded numbers, for programs."""
    keys = swept(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "miou", "epochs", "seconds", "state", "reason", *keys])
    for row in rows:
        seconds = None if row.seconds is None else round(row.seconds, 1)
        known = [row.job, row.miou, row.epochs, seconds, row.state, row.reason]
        writer.writerow(known + [row.overrides.get(key) for key in keys])
    return text.getvalue()


def conclude(sweep_dir: Path, rows: list[Row]) -> None:
    """Print the table of a sweep and write it into its folder.

    Raises:
        CocosegError: the folder can't be written to.
    """
    write_bytes(sweep_dir / TABLE, as_csv(rows).encode())
    print(f"\n{as_text(rows)}\n\nleaderboard  {from_here(sweep_dir / TABLE)}", flush=True)


def _read_row(folder: Path, job: str) -> Row:
    outcome = Outcome.read(folder)
    ledger = None
    with suppress(CocosegError):
        ledger = read_ledger(folder / LEDGER)
    state, reason = _state(folder, outcome, ledger is not None and ledger["finished"])
    return Row(
        job=job,
        state=state,
        reason=reason,
        miou=_miou(folder, outcome),
        epochs=outcome and outcome.epochs,
        seconds=ledger and ledger["used"],
        overrides=_overrides(folder),
    )


def _state(folder: Path, outcome: Outcome | None, finished: bool) -> tuple[str, str]:
    if outcome is not None:
        return outcome.state, outcome.reason
    if finished:
        return "finished", ""
    signs = [file for name in (LEDGER, "config.yaml", ".hydra") if (file := folder / name).exists()]
    with suppress(OSError):
        if time.time() - max(file.stat().st_mtime for file in signs) < ALIVE:
            return RUNNING, ""
    return (STOPPED, "killed") if (folder / LEDGER).exists() else (FAILED, "did not begin")


def _miou(folder: Path, outcome: Outcome | None) -> float | None:
    """Validation mIoU at the end of a run, else the best one so far."""
    if outcome is not None and outcome.miou is not None:
        return outcome.miou
    with suppress(OSError, ValueError, KeyError, TypeError):
        return float(msgspec.json.decode((folder / METRICS).read_bytes())["miou"])
    return None


def _overrides(folder: Path) -> dict[str, str]:
    """Overrides of a run by key, without those that a sweep adds."""
    given: dict[str, str] = {}
    with suppress(OSError, ValueError, YAMLError):
        for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml"):
            key, _, value = str(override).lstrip("+").partition("=")
            given[key] = value
    added = ADDED_BY_SWEEP if "sweep.trial" in given else ()
    return {key: value for key, value in given.items() if not _is_below(key, added)}


def _is_below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _natural_order(job: str) -> tuple[tuple[bool, int, str], ...]:
    """Sort key by which 10 comes after 9."""
    parts = re.split(r"(\d+)", job)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m cocoseg.sweeps.leaderboard outputs/multirun/<sweep> …   runs, best first")
        return 0 if arguments else 2
    with report_errors():
        for folder in arguments:
            conclude(Path(folder), read_rows(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
