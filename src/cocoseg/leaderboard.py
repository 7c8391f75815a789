"""Door for `python -m cocoseg.leaderboard`; the work is in `cocoseg.sweeps.leaderboard`."""

import sys

from cocoseg.sweeps.leaderboard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
