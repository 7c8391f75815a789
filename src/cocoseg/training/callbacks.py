"""The callbacks of a training, in the order in which they run; Lightning runs `BestCheckpoint` last."""

import sys

import lightning as L
from lightning.pytorch.callbacks import ModelSummary, ProgressBar

from cocoseg import distributed
from cocoseg.budget.open_run import Run, best_beside
from cocoseg.budget.pacing import KeepBudget
from cocoseg.budget.schedule import ScheduleRate
from cocoseg.budget.signals import StopOnSignal
from cocoseg.cli import build
from cocoseg.config import Config
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.run_folder import CHECKPOINTS
from cocoseg.sweeps.pruning import PruneTrial
from cocoseg.training.batch_size import CheckMemory
from cocoseg.training.checkpoints import BestCheckpoint, LastCheckpoint
from cocoseg.training.collapse_warning import WarnOfCollapse
from cocoseg.training.compiling import CompileNetwork
from cocoseg.training.console import BarProgress, LineProgress, ValidationLines
from cocoseg.training.finetuning import FreezeEncoder
from cocoseg.training.finish import Exporter
from cocoseg.training.nan_guard import StopOnNaN
from cocoseg.training.tensorboard_figures import Figures, RunTexts
from cocoseg.training.tensorboard_hparams import HyperparameterRow


def build_callbacks(
    config: Config, run: Run, data: SegmentationDataModule, exporter: Exporter
) -> list[L.Callback]:
    """List all callbacks of this rank."""
    budget, folder = run.budget, run.folder / CHECKPOINTS
    own = [
        build(node, f"callbacks.{name}", kind=L.Callback) for name, node in config.callbacks.items() if node
    ]
    callbacks: list[L.Callback] = [distributed.SyncBatchNormStatistics()]
    if config.compile:
        callbacks.append(CompileNetwork(data))
    # Compilation and memory check come before KeepBudget, so that they do not count as training.
    callbacks += [CheckMemory(data), KeepBudget(budget, config)]
    callbacks += [ScheduleRate(config.schedule, budget), StopOnNaN()]
    if config.finetune.frozen:
        callbacks.append(FreezeEncoder(config.finetune.frozen, budget))
    callbacks += [
        BestCheckpoint(folder, exporter, best_beside(run.checkpoint)),
        LastCheckpoint(folder, config.budget.checkpoint_every, budget),
        StopOnSignal(),
        PruneTrial(config.sweep, run.folder.parent, budget),
        *own,
    ]
    if distributed.rank() == 0:
        callbacks += [RunTexts(config, run.command), HyperparameterRow(config, run.command)]
        if config.trainer.get("enable_model_summary"):
            callbacks.append(ModelSummary(max_depth=3))  # Lightning's own shows one level
        callbacks += [ValidationLines(budget), Figures(budget), WarnOfCollapse(budget)]
        has_bar = any(isinstance(callback, ProgressBar) for callback in own)
        if config.trainer.get("enable_progress_bar") is not False and not has_bar:
            # A bar needs a terminal on both: `tee` and `2>` write files, which get lines.
            on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
            callbacks.append(BarProgress(budget) if on_terminal else LineProgress(budget))
    return callbacks
