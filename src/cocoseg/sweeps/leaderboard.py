"""The runs of a sweep, best first: `python -m cocoseg.leaderboard outputs/multirun/<sweep>`.

Reads run folders only, so that it works on every sweep: one that is running or was killed, Hydra's own grid,
one that an older version made (a blank where it wrote no number of epochs). No torch.
"""

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from omegaconf import OmegaConf
from yaml import YAMLError

from cocoseg.budget.ledger import read_ledger
from cocoseg.durations import clock
from cocoseg.errors import CocosegError, report_errors
from cocoseg.files import from_here, write_csv
from cocoseg.overrides import key_of
from cocoseg.run_folder import FAILED, FINISHED, LEDGER, METRICS, RUNNING, STOPPED, Outcome

TABLE = "leaderboard.csv"
ALIVE = 15.0  # seconds since the ledger was last written, after which a run counts as killed
ADDED_BY_SWEEP = ("sweep.", "resume.", "trainer.max_time.")  # keys that a sweep adds, and all below them
MAX_REASON = 60  # characters


@dataclass(frozen=True)
class Row:
    """A run.

    Attributes:
        job: run folder, relative to the folder of the sweep.
        state: as in an `Outcome`, or running.
        miou: validation mIoU of the exported model, or the best one so far.
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


def differing_keys(rows: list[Row]) -> list[str]:
    """The overrides in which the runs differ, in the order of the first job's command."""
    in_order = sorted(rows, key=lambda row: _natural_order(row.job))
    keys = dict.fromkeys(key for row in in_order for key in row.overrides)
    return [key for key in keys if len({row.overrides.get(key) for row in rows}) > 1]


def as_text(rows: list[Row]) -> str:
    """The table, aligned with blanks."""
    keys = differing_keys(rows)
    lines = [["job", "mIoU", "epochs", "time", "state", *keys, ""]]
    for row in rows:
        miou = "" if row.miou is None else f"{row.miou:.3f}"
        epochs = "" if row.epochs is None else str(row.epochs)
        used = "" if row.seconds is None else clock(row.seconds)
        reason = row.reason if len(row.reason) <= MAX_REASON else f"{row.reason[: MAX_REASON - 1]}…"
        values = [row.overrides.get(key, "") for key in keys]
        lines.append([row.job, miou, epochs, used, row.state, *values, reason])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    columns = [f"{{:{'>' if 1 <= i <= 3 else ''}{width}}}" for i, width in enumerate(widths)]
    return "\n".join("  ".join(columns).format(*line).rstrip() for line in lines)


def conclude(sweep_dir: Path, rows: list[Row]) -> None:
    """Print the table of a sweep, and write it into its folder with unrounded numbers.

    Raises:
        CocosegError: the folder can't be written to.
    """
    keys = differing_keys(rows)
    table = [
        {
            "job": row.job,
            "miou": row.miou,
            "epochs": row.epochs,
            "seconds": None if row.seconds is None else round(row.seconds, 1),
            "state": row.state,
            "reason": row.reason,
            **{key: row.overrides.get(key) for key in keys},
        }
        for row in rows
    ]
    write_csv(sweep_dir / TABLE, table)
    print(f"\n{as_text(rows)}\n\nleaderboard  {from_here(sweep_dir / TABLE)}", flush=True)


def _read_row(folder: Path, job: str) -> Row:
    outcome = Outcome.read(folder)
    ledger = None
    with suppress(CocosegError):
        ledger = read_ledger(folder / LEDGER)
    if outcome is None:
        finished = ledger is not None and ledger["finished"]
        outcome = Outcome(FINISHED) if finished else Outcome(*_unfinished_state(folder))
    miou = outcome.miou
    if miou is None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            miou = float(msgspec.json.decode((folder / METRICS).read_bytes())["miou"])
    used = ledger and ledger["used"]
    return Row(job, outcome.state, outcome.reason, miou, outcome.epochs, used, _overrides(folder))


def _unfinished_state(folder: Path) -> tuple[str, str]:
    """State and reason of a run that has not written how it ended."""
    signs = [file for name in (LEDGER, "config.yaml", ".hydra") if (file := folder / name).exists()]
    with suppress(OSError):
        if time.time() - max(file.stat().st_mtime for file in signs) < ALIVE:
            return RUNNING, ""
    return (STOPPED, "killed") if (folder / LEDGER).exists() else (FAILED, "did not begin")


def _overrides(folder: Path) -> dict[str, str]:
    """Overrides of a run by key, without those that a sweep adds."""
    given: dict[str, str] = {}
    with suppress(OSError, ValueError, YAMLError):
        for override in OmegaConf.load(folder / ".hydra" / "overrides.yaml"):
            given[key_of(override)] = override.partition("=")[2]
    if "sweep.trial" not in given:
        return given
    return {key: value for key, value in given.items() if not f"{key}.".startswith(ADDED_BY_SWEEP)}


def _natural_order(job: str) -> list[str | int]:
    """Sort key by which 10 comes after 9; every second part is a number."""
    parts = re.split(r"(\d+)", job)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m cocoseg.leaderboard outputs/multirun/<sweep> …   runs, best first")
        return 0 if arguments else 2
    with report_errors():
        for folder in arguments:
            conclude(Path(folder), read_rows(Path(folder)))
    return 0
