"""The trainings of a sweep, best first: `python -m cocoseg.leaderboard outputs/multirun/SWEEP`.

Reads run folders only, so that it works on every sweep: one that is running or was killed, Hydra's own grid,
one of an older version, which wrote no number of epochs. No torch.
"""

import math
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from yaml import YAMLError

from cocoseg.budget.ledger import read_ledger
from cocoseg.durations import as_clock
from cocoseg.errors import CocosegError, printable
from cocoseg.files import from_here, read_json, read_yaml, write_csv
from cocoseg.overrides import Command, quote_path
from cocoseg.run_folder import CONFIG, LEDGER, METRICS, OUTCOME, RUNNING, STOPPED, Outcome

TABLE = "leaderboard.csv"
ALIVE = 15.0  # seconds since a file was last written, after which a run counts as killed
MAX_REASON = 60  # characters that are printed
ADDED_BY_SWEEP = ("sweep.", "trainer.max_time", "budget.until")  # beginnings of keys outside the search space
HEADINGS = {"miou": "mIoU", "seconds": "time", "reason": ""}  # those that differ from the keys
FORMATS = {"miou": "{:.3f}".format, "seconds": as_clock}


class _Metrics(msgspec.Struct):
    miou: float | None


def read_rows(sweep_dir: Path) -> list[dict[str, Any]]:
    """Read the rows of the table: all trainings below a folder, the best first, those without a score last.

    Returns:
        `job`, the run folder below `sweep_dir`; `miou`, `epochs`, `seconds`, `state` and `reason`, see
        `_read_run`; then the values of the overrides in which the runs differ, by key.
    """
    folders = {file.parent for file in sweep_dir.rglob(LEDGER)}
    # A job that was refused before it began has neither ledger nor configuration.
    folders |= {file.parent for file in sweep_dir.rglob(OUTCOME) if not file.with_name(CONFIG).exists()}
    runs = {printable(folder.relative_to(sweep_dir).as_posix()): folder for folder in folders}
    jobs = sorted(runs, key=lambda job: (len(job), job))  # 10 after 9
    overrides = {job: _overrides(runs[job]) for job in jobs}
    keys = dict.fromkeys(key for given in overrides.values() for key in given)
    differing = [key for key in keys if len({given.get(key) for given in overrides.values()}) > 1]
    rows = [
        {"job": job, **run, **{key: overrides[job].get(key) for key in differing if key not in run}}
        for job, run in ((job, _read_run(runs[job])) for job in jobs)
    ]
    return sorted(rows, key=lambda row: math.inf if row["miou"] is None else -row["miou"])


def as_text(rows: list[dict[str, Any]]) -> str:
    """Align the table with blanks; reasons come last, and long ones are cut."""
    keys = [*(key for key in rows[0] if key != "reason"), "reason"]
    lines = [[HEADINGS.get(key, key) for key in keys]]
    for row in rows:
        cells = row | {"reason": textwrap.shorten(row["reason"], MAX_REASON, placeholder="…")}
        lines.append(["" if cells[key] is None else FORMATS.get(key, str)(cells[key]) for key in keys])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # The numbers (mIoU, epochs, time) to the right.
    columns = [f"{{:{'>' if 1 <= i <= 3 else ''}{width}}}" for i, width in enumerate(widths)]
    return "\n".join("  ".join(columns).format(*line).rstrip() for line in lines)


def write_table(sweep_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Print the table of a sweep, and write it into its folder with unrounded scores.

    Raises:
        CocosegError: the folder can't be written to.
    """
    write_csv(sweep_dir / TABLE, rows)
    print(f"\n{as_text(rows)}\n\nleaderboard  {from_here(sweep_dir / TABLE)}", flush=True)
    best = sweep_dir / rows[0]["job"]
    if rows[0]["miou"] is not None and (best / CONFIG).is_file():  # its name may not have been printable
        print(f"train it longer: {command_to_train_longer(best)}", flush=True)


def command_to_train_longer(folder: Path) -> str:
    """The command, for a shell, that trains the settings of a run anew for six hours."""
    overrides = [f"from_run={quote_path(str(from_here(folder)))}", "trainer.max_time=6h"]
    with suppress(OSError, ValueError, YAMLError, AttributeError, LookupError, TypeError):
        trainer = read_yaml(folder / CONFIG)["trainer"]
        overrides += [f"trainer.{key}=-1" for key in ("max_epochs", "max_steps") if (trainer[key] or -1) > 0]
    return str(Command(tuple(overrides)))


def _read_run(folder: Path) -> dict[str, Any]:
    """Read a run's outcome (without one: running or killed), its best score, the seconds of all attempts."""
    used = None
    with suppress(CocosegError):
        if ledger := read_ledger(folder / LEDGER):
            used = round(ledger["used"], 1)
    outcome = Outcome.read(folder)
    if outcome is None:  # it runs or was killed
        is_alive = time.time() - folder.stat().st_mtime < ALIVE  # the ledger is replaced every two seconds
        outcome = Outcome(RUNNING) if is_alive else Outcome(STOPPED, "killed")
    miou = outcome.miou
    if miou is None:
        with suppress(OSError, ValueError):
            miou = read_json(folder / METRICS, _Metrics).miou
    return {
        "miou": miou,
        "epochs": outcome.epochs,
        "seconds": used,
        "state": outcome.state,
        "reason": outcome.reason,
    }


def _overrides(folder: Path) -> dict[str, str]:
    """Overrides of a run by key, without those that a sweep adds."""
    given: dict[str, str] = {}
    # Not by OmegaConf: it would resolve interpolations, and unfold what refers to itself many times.
    with suppress(OSError, ValueError, YAMLError, RecursionError):
        overrides = read_yaml(folder / ".hydra" / "overrides.yaml")
        for override in overrides if isinstance(overrides, list) else ():
            if isinstance(override, str):
                key, _, value = printable(override).lstrip("+~").partition("=")
                given[key] = value
    if "sweep.trial" in given:
        return {key: value for key, value in given.items() if not key.startswith(ADDED_BY_SWEEP)}
    return given
