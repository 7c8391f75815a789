"""`python -m cocoseg.leaderboard`: compare the trainings of sweeps, see commands/leaderboard.py."""

import sys

from cocoseg.commands.leaderboard import main

if __name__ == "__main__":
    sys.exit(main())
