"""The formats beside `segmentation_model.pth` that a run ends with, and the time that they take."""

import copy
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from cocoseg.budget import END, Budget, clock
from cocoseg.errors import CocosegError
from cocoseg.export import SegmentationModel, load_model
from cocoseg.exporting import Exported, export_format
from cocoseg.files import from_here
from cocoseg.module import SegmentationModule

log = logging.getLogger(__name__)

TRIAL = 60.0  # seconds that must be left for a trial of unknown length
MOST = 0.2  # of the budget that they may take


class ExtraFormats:
    """Writes a run's model in other formats at its end, within its budget.

    Nothing can be measured of them before the end, so they are tried out at the start, on the network as it
    is then: that takes as long, finds a network that can't be written before any training, and tells the
    budget what to reserve: nothing where they would take more than a fifth of it. At the end they are left
    out where the time that is left is less than that, and what goes wrong is a warning:
    `segmentation_model.pth` is there, from which they can be written later.

    Args:
        names: of formats; `pth` is not of them and may stand among them.
        module: its network is on the CPU at the time of the trial.
        budget: its `expected.formats` is what the trial took.

    Attributes:
        leave_out: don't write them, for a signal ended the run.
    """

    def __init__(self, names: Sequence[str], module: SegmentationModule, budget: Budget):
        self.names = [name for name in dict.fromkeys(names) if name != "pth"]
        self.module, self.budget = module, budget
        self.leave_out = False

    def try_out(self) -> None:
        """Write each once, for the time that it takes. A run that goes on knows that from its ledger.

        Raises:
            CocosegError: the network can't be written in one of them.
        """
        budget, known = self.budget, self.budget.expected.formats
        budget.expected.formats = {name: known[name] for name in self.names if name in known}
        new = [name for name in self.names if name not in known]
        if not new or rank_zero_only.rank:
            return
        if budget.limit is not None and budget.used_before and budget.left() < budget.reserve() + TRIAL:
            return  # nor will there be time for them at the end
        log.info("trying out the export: %s", ", ".join(new))
        model = SegmentationModel(copy.deepcopy(self.module.result).cpu(), self.module.spec, None)
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng([]):
            for name in new:
                begin = time.monotonic()
                try:
                    export_format(name, model, Path(folder, "trial"))
                except CocosegError as error:
                    raise CocosegError(f"export: {error.sentence}; leave {name} out of export") from error
                budget.expected.formats[name] = time.monotonic() - begin
        if budget.limit is not None and budget.for_formats() > MOST * budget.limit:
            log.warning(
                "%s: that takes about %s, too much of %s; nothing is reserved for it",
                ", ".join(self.names),
                clock(budget.for_formats()),
                clock(budget.limit),
            )
            budget.expected.formats = {}

    def write(self, model_file: Path) -> list[Exported]:
        """Write them beside a model file, from its weights."""
        if not self.names:
            return []
        names = ", ".join(self.names)
        later = (
            f"python -m cocoseg.export checkpoint={from_here(model_file)} formats=[{','.join(self.names)}]"
        )
        if self.leave_out:
            log.warning("%s not written, for a signal ended the run; later: %s", names, later)
            return []
        expected, left = self.budget.expected.formats, self.budget.left() - END
        if left < sum(expected.values()) or expected.keys() != set(self.names):
            log.warning("%s not written, for there was no time left; later: %s", names, later)
            return []
        written = []
        with self.budget.timed("saving"):
            model = load_model(model_file, net=copy.deepcopy(self.module.result).cpu())
            for name in self.names:
                try:
                    written.append(export_format(name, model, model_file.with_suffix("")))
                except CocosegError as error:
                    log.warning("%s not written: %s; later: %s", name, error.sentence, later)
        return written
