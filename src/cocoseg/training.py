"""The recipe: prepare, train, export. Read from top to bottom."""

import logging
from pathlib import Path
from typing import Any

import lightning as L

from cocoseg import processes
from cocoseg.assembly import make_module
from cocoseg.batch_size import explain_half_batch, largest_batch
from cocoseg.budget import Budget
from cocoseg.callbacks import display, pacing
from cocoseg.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from cocoseg.cli import build
from cocoseg.config import AUTO, Config
from cocoseg.console import quiet_lightning
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.device import explain_out_of_memory, settled
from cocoseg.diagnostics import one_sided
from cocoseg.durations import clock
from cocoseg.files import from_here
from cocoseg.finish import Exporter, finish
from cocoseg.model_file import read_checkpoint
from cocoseg.module import SegmentationModule
from cocoseg.networks import arguments_of, is_own, probe
from cocoseg.optimizer import require_same_groups
from cocoseg.outcome import FINISHED, PRUNED, STOPPED, Outcome
from cocoseg.overrides import Command
from cocoseg.pacing import trainer_settings
from cocoseg.pretrained import Pretrained, read_pretrained
from cocoseg.pruning import PruneTrial
from cocoseg.resuming import best_beside
from cocoseg.stopping import StopOnSignal
from cocoseg.trained_on import write_training_images

log = logging.getLogger(__name__)


@processes.explain_lost_process()
@explain_out_of_memory()
def train(config: Config, run_dir: Path, budget: Budget, command: Command | None = None) -> int:
    """Prepare, train, export. Returns the exit code: not 0 where a signal ended the training early.

    `command` is what was typed, for the dashboard and for advice.
    """
    quiet_lightning()
    budget.writes_formats = any(name != "pth" for name in config.export)
    checkpoint = _begin(config, budget)
    settings = settled(trainer_settings(config, budget))
    arguments_of(config.model)  # what is wrong there shows before the data are prepared
    pretrained = None if checkpoint is not None else _weights(config)

    data = _open(config, budget)
    if processes.rank() == 0:
        weights = config.model.get("weights") if is_own(config.model) else None
        write_training_images(run_dir, data.training_images(), (config.ckpt_path, weights))
    module = make_module(config, data, settings, pretrained)
    if checkpoint is not None:
        _require_fitting(checkpoint, module, where=config.ckpt_path)

    exporter = Exporter(module, data, run_dir, budget)
    earlier = best_beside(Path(config.ckpt_path)) if config.ckpt_path else None
    best = BestCheckpoint(run_dir / "checkpoints", exporter, earlier)
    every = config.budget.checkpoint_every
    last = LastCheckpoint(run_dir / "checkpoints", every, budget)
    stop = StopOnSignal()
    prune = PruneTrial(config.sweep, run_dir.parent, budget)
    around = pacing(config, budget, data, stop), display(config, budget, command or Command())
    trainer = build(
        settings,
        "trainer",
        default_root_dir=run_dir,
        callbacks=[*around[0], best, last, stop, prune, *around[1]],
        plugins=[WholeCheckpointIO(budget.watches.checkpoint)],
        logger=build(config.logger, "logger", save_dir=run_dir) if config.logger else False,
    )
    if not is_own(config.model):
        probe(module, trainer, images=2 if data.batch_size == AUTO else data.batch_size)

    if checkpoint is not None and processes.agreed(budget.is_spent())[0]:
        spent, limit = clock(budget.used()), clock(budget.limit)
        log.warning("%s of %s are used: nothing left to train; budget.extend adds time", spent, limit)
        if processes.rank() == 0:
            exporter(earlier)
    else:
        if data.batch_size == AUTO:
            data.batch_size = largest_batch(module, len(data.train_set), trainer)
        accumulate = settings.get("accumulate_grad_batches") or 1
        halved = explain_half_batch(data, accumulate, command or Command(), run_dir, config.ckpt_path)
        with halved, stop.listening():
            trainer.fit(module, data, ckpt_path=config.ckpt_path, weights_only=True)
            if module.scores is None:  # a limit in steps can end before the first validation
                trainer.validate(module, data, verbose=False)
    if stop.received:
        advice = f"; to go on: ckpt_path={from_here(last.path)}" if last.step >= 0 else ""
        log.warning("%s: stopped at step %d%s", stop.received.name, trainer.global_step, advice)
    with stop.listening():
        finish(trainer, exporter, config.export, stopped=bool(stop.received))
    budget.finished = not stop.received
    if processes.rank() == 0:
        _outcome(trainer, exporter, stop, prune).write(run_dir)
    return stop.exit_code


def _begin(config: Config, budget: Budget) -> dict[str, Any] | None:
    """Meet the other processes, if there are any, and read the checkpoint to go on from, if there is one."""
    processes.join(config.trainer)
    config.ckpt_path, ledger = processes.told((config.ckpt_path, budget.to_dict()))
    if processes.rank() > 0:
        budget.follow(ledger)
    # Each process drops other channels; the first one's weights are those of all.
    L.seed_everything((config.seed + processes.rank()) % 2**32, workers=True, verbose=False)
    if config.ckpt_path is None:
        return None
    checkpoint = read_checkpoint(config.ckpt_path)
    budget.resume(checkpoint.get("budget"))
    return checkpoint


def _weights(config: Config) -> Pretrained | None:
    """Those to begin with, fetched once per machine."""
    fetched = read_pretrained(config.model) if processes.is_first_of_machine() else None
    processes.wait()
    return fetched or read_pretrained(config.model)


def _open(config: Config, budget: Budget) -> SegmentationDataModule:
    """Prepare the data, once per machine, and open them."""
    data = SegmentationDataModule(config, progress=lambda: budget.progress)
    if processes.is_first_of_machine():
        data.prepare_data()
    processes.wait()
    data.setup("fit")
    log.info("training on %d images, validating on %d", len(data.train_set), len(data.val_set))
    if config.data.cache:  # else all masks would be read for it
        for warning in one_sided(data.class_counts(), data.val_class_counts(), data.labels):
            log.warning(warning)
    return data


def _require_fitting(checkpoint: dict[str, Any], module: SegmentationModule, where: str) -> None:
    """Refuse a checkpoint of another network, of other labels, or of other groups of weights."""
    module.spec.require_same(checkpoint["spec"], where=where)
    require_same_groups(module.configure_optimizers(), checkpoint["optimizer_states"][0], where=where)


def _outcome(trainer: L.Trainer, exporter: Exporter, stop: StopOnSignal, prune: PruneTrial) -> Outcome:
    state = STOPPED if stop.received else PRUNED if prune.reason else FINISHED
    reason = stop.received.name if stop.received else prune.reason
    miou = exporter.scores and exporter.scores.miou
    return Outcome(state, reason, miou, trainer.current_epoch, trainer.global_step)
