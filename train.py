"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

import logging
import os
import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cocoseg.budget import LEDGER, Budget, clock, kept_in
from cocoseg.cli import build, entry_point, is_typed, start_run, typed
from cocoseg.config import Config, parse_duration
from cocoseg.files import from_here
from cocoseg.resuming import best_beside, claimed, continue_run

log = logging.getLogger("cocoseg.train")


def train(config: Config, run_dir: Path, budget: Budget) -> int:
    """Prepare, train, export. Returns the exit code: not 0 where a signal ended the training early."""
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores a
    # step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Imported here, so that --help and mistakes in the configuration answer at once.
    import lightning as L

    from cocoseg.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
    from cocoseg.console import progress_callback, quiet_lightning
    from cocoseg.dashboard import ExampleSheet
    from cocoseg.datamodule import SegmentationDataModule
    from cocoseg.export import read_checkpoint
    from cocoseg.failures import StopAtNoNumber, explained
    from cocoseg.finish import Exporter, finish
    from cocoseg.module import SegmentationModule
    from cocoseg.pacing import KeepBudget, trainer_settings
    from cocoseg.schedule import ScheduleRate
    from cocoseg.spec import ModelSpec
    from cocoseg.stopping import StopOnSignal

    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None
    if checkpoint is not None:
        budget.resume(checkpoint.get("budget"))

    data = SegmentationDataModule(config)
    data.prepare_data()
    data.setup("fit")
    log.info("training on %d images, validating on %d", len(data.train_set), len(data.val_set))

    network = {**config.model, "num_classes": len(data.labels)}
    spec = ModelSpec(network, data.labels, tuple(config.data.image_size))
    if checkpoint is not None:
        spec.require_same(checkpoint["spec"], where=config.ckpt_path)
    module = SegmentationModule(
        net=build(network, "model"),
        loss=build(config.loss, "loss"),
        optimizer=partial(build, config.optimizer, "optimizer"),
        spec=spec,
    )

    exporter = Exporter(module, data, run_dir, budget)
    earlier = best_beside(Path(config.ckpt_path)) if config.ckpt_path else None
    best = BestCheckpoint(run_dir / "checkpoints", exporter, earlier)
    every = parse_duration(config.budget.checkpoint_every, key="budget.checkpoint_every")
    last = LastCheckpoint(run_dir / "checkpoints", every, budget)
    stop = StopOnSignal()
    callbacks = [KeepBudget(budget, config), ScheduleRate(config.schedule, budget), StopAtNoNumber()]
    callbacks += [best, last, stop, ExampleSheet()]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_callback(budget))
    callbacks += [build(node, f"callbacks.{name}") for name, node in config.callbacks.items()]
    trainer: L.Trainer = build(
        trainer_settings(config, budget),
        "trainer",
        default_root_dir=run_dir,
        callbacks=callbacks,
        plugins=[WholeCheckpointIO(budget)],
        logger=build(config.logger, "logger", save_dir=run_dir) if config.logger else False,
    )

    with explained():
        if budget.is_spent() and checkpoint is not None:
            spent, limit = clock(budget.used()), clock(budget.limit)
            log.warning("%s of %s are used: nothing left to train; budget.extend adds time", spent, limit)
            exporter.export_from(earlier)
        else:
            with stop.listening():
                trainer.fit(module, data, ckpt_path=config.ckpt_path, weights_only=True)
                if module.scores is None:  # a limit in steps can end before the first validation
                    trainer.validate(module, data, verbose=False)
        if stop.received:
            advice = f"; to go on: ckpt_path={from_here(last.path)}" if last.step >= 0 else ""
            log.warning("%s: stopped at step %d%s", stop.received.name, trainer.global_step, advice)
        with stop.listening():
            finish(trainer, exporter)
        budget.finished = not stop.received
    return stop.exit_code


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@entry_point
def main(cfg: DictConfig) -> None:
    config = typed(cfg)
    goes_on = config.ckpt_path is not None or config.resume is not None
    run_dir = start_run(cfg, overwrite=goes_on)
    with claimed(run_dir):  # before the ledger is read, which whoever was there may still have written to
        budget = continue_run(config, run_dir, limit_is_typed=is_typed("trainer.max_time"))
        with kept_in(run_dir / LEDGER, budget):  # a kill during the imports counts, too
            exit_code = train(config, run_dir, budget)
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    main()
