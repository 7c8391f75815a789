"""`python -m cocoseg.leaderboard`: the trainings of sweeps, best first. No torch."""

import sys
from pathlib import Path

from cocoseg.errors import CocosegError, report_errors
from cocoseg.sweeps.leaderboard import read_rows, write_table

HELP = "python -m cocoseg.leaderboard outputs/multirun/SWEEP …   runs, best first"


def main(arguments: list[str] | None = None) -> int:
    """Print and write the tables of folders, by default those of the command line. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0 if arguments else 2
    with report_errors():
        for folder in map(Path, arguments):
            rows = read_rows(folder)
            if not rows:
                raise CocosegError(f"{folder}: no folder with trainings")
            write_table(folder, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
