"""The recipe: prepare, train, export. Read from top to bottom."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn
from torch.optim import Optimizer

from cocoseg import memory, processes
from cocoseg.advice import Advice, one_sided
from cocoseg.balance import class_weights
from cocoseg.budget import Budget, clock
from cocoseg.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from cocoseg.cli import build
from cocoseg.command import Command
from cocoseg.compiling import CompileNetwork
from cocoseg.config import AUTO, Config, parse_duration
from cocoseg.console import progress_callback, quiet_lightning
from cocoseg.dashboard import Pictures, RunTexts
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.device import in_channels_last, settled
from cocoseg.export import read_checkpoint
from cocoseg.failures import StopAtNoNumber, explained
from cocoseg.files import from_here
from cocoseg.finetuning import FreezeEncoder, encoder_of, slowed
from cocoseg.finish import Exporter, finish
from cocoseg.formats import ExtraFormats
from cocoseg.hparams import HyperparameterRow
from cocoseg.module import SegmentationModule
from cocoseg.networks import arguments_of, is_own, probe
from cocoseg.optimizer import decayed, require_same_groups, with_fused
from cocoseg.outcome import FINISHED, PRUNED, STOPPED, Outcome
from cocoseg.pacing import KeepBudget, trainer_settings
from cocoseg.pretrained import Pretrained, read_pretrained
from cocoseg.pruning import PruneTrial
from cocoseg.resuming import best_beside
from cocoseg.schedule import ScheduleRate
from cocoseg.spec import ModelSpec
from cocoseg.stopping import StopOnSignal

log = logging.getLogger(__name__)


@explained()
def train(config: Config, run_dir: Path, budget: Budget, command: Command | None = None) -> int:
    """Prepare, train, export. Returns the exit code: not 0 where a signal ended the training early.

    `command` is what was typed, for the dashboard.
    """
    quiet_lightning()
    processes.join(config.trainer)
    config.ckpt_path, ledger = processes.told((config.ckpt_path, budget.to_dict()))
    leads = processes.rank() == 0
    if not leads:
        budget.follow(ledger)
    # Each process drops other channels; the first one's weights are those of all.
    L.seed_everything((config.seed + processes.rank()) % 2**32, workers=True, verbose=False)
    settings = settled(trainer_settings(config, budget))
    checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None
    if checkpoint is not None:
        budget.resume(checkpoint.get("budget"))
    arguments_of(config.model)  # what is wrong there shows before the data are prepared
    pretrained = None if checkpoint is not None else read_pretrained(config.model)

    data = SegmentationDataModule(config, progress=lambda: budget.progress)
    if processes.is_first_of_machine():
        data.prepare_data()
    processes.wait()
    data.setup("fit")
    log.info("training on %d images, validating on %d", len(data.train_set), len(data.val_set))
    if config.data.cache:  # else all masks would be read for it
        for said in one_sided(data.class_counts(), data.val_class_counts(), data.labels):
            log.warning(said)

    module = make_module(config, data, settings, pretrained)
    if checkpoint is not None:
        module.spec.require_same(checkpoint["spec"], where=config.ckpt_path)
        states = checkpoint["optimizer_states"]
        require_same_groups(module.configure_optimizers(), states[0], where=config.ckpt_path)

    formats = ExtraFormats(config.export, module, budget)
    formats.try_out()
    exporter = Exporter(module, data, run_dir, budget)
    earlier = best_beside(Path(config.ckpt_path)) if config.ckpt_path else None
    best = BestCheckpoint(run_dir / "checkpoints", exporter, earlier)
    every = parse_duration(config.budget.checkpoint_every, key="budget.checkpoint_every")
    last = LastCheckpoint(run_dir / "checkpoints", every, budget)
    stop = StopOnSignal()
    prune = PruneTrial(config.sweep, run_dir.parent, budget)
    make_trainer = partial(
        build,
        settings,
        "trainer",
        default_root_dir=run_dir,
        callbacks=[
            *pacing(config, budget, data, stop),
            best,
            last,
            stop,
            prune,
            *display(config, budget, command or Command(), leads),
        ],
        plugins=[WholeCheckpointIO(budget)],
        logger=build(config.logger, "logger", save_dir=run_dir) if config.logger else False,
    )
    fit = memory.FitInMemory(make_trainer, settings.get("accumulate_grad_batches") or 1, last)
    if not is_own(config.model):
        probe(module, fit.trainer, images=2 if data.batch_size == AUTO else data.batch_size)

    if checkpoint is not None and processes.agreed(budget.is_spent())[0]:
        spent, limit = clock(budget.used()), clock(budget.limit)
        log.warning("%s of %s are used: nothing left to train; budget.extend adds time", spent, limit)
        if leads:
            exporter.export_from(earlier)
    else:
        if data.batch_size == AUTO:
            data.batch_size = memory.largest_batch(module, len(data.train_set), fit.trainer)
        with stop.listening():
            fit(module, data, config.ckpt_path)
            if module.scores is None:  # a limit in steps can end before the first validation
                fit.trainer.validate(module, data, verbose=False)
    if stop.received:
        advice = f"; to go on: ckpt_path={from_here(last.path)}" if last.step >= 0 else ""
        log.warning("%s: stopped at step %d%s", stop.received.name, fit.trainer.global_step, advice)
    formats.leave_out = bool(stop.received)  # what sends a signal may not wait for long
    with stop.listening():
        finish(fit.trainer, exporter, formats)
    budget.finished = not stop.received
    if leads:
        state = STOPPED if stop.received else PRUNED if prune.reason else FINISHED
        reason = stop.received.name if stop.received else prune.reason
        miou = exporter.scores and exporter.scores.miou
        Outcome(state, reason, miou, fit.trainer.current_epoch, fit.trainer.global_step).write(run_dir)
    return stop.exit_code


def make_module(
    config: Config,
    data: SegmentationDataModule,
    settings: dict[str, Any],
    pretrained: Pretrained | None = None,
) -> SegmentationModule:
    """The network, the loss and the optimizer that `config` names, for the classes of the data."""
    network = arguments_of(config.model, len(data.labels))
    node = with_fused(config.optimizer, settings)
    net = in_channels_last(build(network, "model"))
    if pretrained is not None:
        pretrained.load_into(net, data.labels)
    finetune = config.finetune
    encoder = encoder_of(net) if finetune.frozen or finetune.encoder_lr != 1 else None

    def optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        groups = decayed(node, parameters)
        if finetune.encoder_lr != 1:
            groups = slowed(groups, encoder, finetune.encoder_lr * node["lr"])
        return build(node, "optimizer", groups)

    return SegmentationModule(
        net=net,
        loss=make_loss(config, data),
        optimizer=optimizer,
        spec=ModelSpec(network, data.labels, tuple(config.data.image_size)),
        ema=config.ema,
    )


def make_loss(config: Config, data: SegmentationDataModule) -> nn.Module:
    """The loss that `config` names, with the class weights that its rule gives for the training masks."""
    node = config.loss
    rule = node.get("class_weights") if isinstance(node, dict) else None
    if isinstance(rule, str):
        weights = None if rule == "none" else class_weights(rule, data.class_counts())
        node = {**node, "class_weights": weights}
    return build(node, "loss")


def pacing(
    config: Config, budget: Budget, data: SegmentationDataModule, stop: StopOnSignal
) -> list[L.Callback]:
    """What happens before steps and after them, in this order."""
    callbacks: list[L.Callback] = [processes.SameStatistics()]
    if config.compile:  # before the budget takes training to have begun
        callbacks.append(CompileNetwork(config.compile, data, budget))
    callbacks += [KeepBudget(budget, config, stop), ScheduleRate(config.schedule, budget), StopAtNoNumber()]
    if config.finetune.frozen:
        callbacks.append(FreezeEncoder(config.finetune.frozen, budget))
    return callbacks


def display(config: Config, budget: Budget, command: Command, leads: bool) -> list[L.Callback]:
    """What is seen of a run, on the process that leads, and the user's own callbacks."""
    callbacks: list[L.Callback] = []
    if leads:
        callbacks += [RunTexts(config, command), HyperparameterRow(config, command)]
        callbacks += [Pictures(budget, config.seed), Advice(budget)]
    if leads and config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_callback(budget))
    return callbacks + [build(node, f"callbacks.{name}") for name, node in config.callbacks.items()]
