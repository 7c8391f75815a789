"""How a run ended, written into its folder for those who look at many runs. No torch."""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from cocoseg.files import write_json

OUTCOME = "outcome.json"
FINISHED, PRUNED, STOPPED, FAILED, RUNNING = "finished", "pruned", "stopped", "failed", "running"


@dataclass(frozen=True)
class Outcome:
    """The end of a run, as far as it is known.

    Attributes:
        state: finished; pruned (ended early, for it was worse than others); stopped by a signal; failed.
        reason: why, in a sentence; empty where a run came to its end.
        miou: of the model that was exported; None without a validation.
        epochs, steps: that were trained, earlier attempts included.
    """

    state: str
    reason: str = ""
    miou: float | None = None
    epochs: int | None = None
    steps: int | None = None

    def write(self, run_dir: Path) -> None:
        write_json(run_dir / OUTCOME, vars(self))

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        """None where the run goes on, was killed, or the file is damaged."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads((run_dir / OUTCOME).read_bytes())
            known = {field.name for field in fields(cls)}
            return cls(**{key: value for key, value in content.items() if key in known})
        return None


def objective(run_dir: Path, exit_code: int) -> float | None:
    """What a sweep wants to be as high as it can: the validation mIoU of the exported model.

    A run that was stopped by a signal ends the process here, and with it a sweep whose jobs it runs.
    """
    outcome = Outcome.read(run_dir)
    if exit_code or (outcome is not None and outcome.state == STOPPED):
        sys.exit(exit_code)
    return outcome and outcome.miou
