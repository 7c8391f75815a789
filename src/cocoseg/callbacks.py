"""The callbacks of a training, in their order."""

import lightning as L

from cocoseg import processes
from cocoseg.batch_size import CheckMemory
from cocoseg.budget import Budget
from cocoseg.cli import build
from cocoseg.compiling import CompileNetwork
from cocoseg.config import Config
from cocoseg.console import progress_callback
from cocoseg.dashboard import Figures, RunTexts
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.diagnostics import Diagnostics
from cocoseg.finetuning import FreezeEncoder
from cocoseg.hparams import HyperparameterRow
from cocoseg.nan_guard import StopOnNaN
from cocoseg.overrides import Command
from cocoseg.pacing import KeepBudget
from cocoseg.schedule import ScheduleRate
from cocoseg.stopping import StopOnSignal


def pacing(
    config: Config, budget: Budget, data: SegmentationDataModule, stop: StopOnSignal
) -> list[L.Callback]:
    """What happens before steps and after them, in this order."""
    callbacks: list[L.Callback] = [processes.SameStatistics()]
    # Both before KeepBudget, for which training has begun then.
    if config.compile:
        callbacks.append(CompileNetwork(data))
    callbacks.append(CheckMemory(data))
    callbacks += [KeepBudget(budget, config, stop), ScheduleRate(config.schedule, budget), StopOnNaN()]
    if config.finetune.frozen:
        callbacks.append(FreezeEncoder(config.finetune.frozen, budget))
    return callbacks


def display(config: Config, budget: Budget, command: Command) -> list[L.Callback]:
    """What is seen of a run, on the process that leads, and the user's own callbacks."""
    callbacks: list[L.Callback] = []
    leads = processes.rank() == 0
    if leads:
        callbacks += [RunTexts(config, command), HyperparameterRow(config, command)]
        callbacks += [Figures(budget, config.seed), Diagnostics(budget)]
    if leads and config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_callback(budget))
    return callbacks + [build(node, f"callbacks.{name}") for name, node in config.callbacks.items()]
