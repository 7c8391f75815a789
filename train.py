"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

import logging
import os
import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cocoseg.cli import build, entry_point, start_run, typed
from cocoseg.config import Config, parse_duration
from cocoseg.files import from_here

log = logging.getLogger("cocoseg.train")


def train(config: Config, run_dir: Path) -> int:
    """Prepare, train, export. Returns the exit code: not 0 where a signal ended the training early."""
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores a
    # step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Imported here, so that --help and mistakes in the configuration answer at once.
    import lightning as L

    from cocoseg.checkpoints import BestCheckpoint, LastCheckpoint
    from cocoseg.console import progress_callback, quiet_lightning
    from cocoseg.dashboard import ExampleSheet
    from cocoseg.datamodule import SegmentationDataModule
    from cocoseg.export import read_checkpoint
    from cocoseg.finish import finish
    from cocoseg.module import SegmentationModule
    from cocoseg.spec import ModelSpec
    from cocoseg.stopping import StopOnSignal

    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)
    checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None

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

    last, stop = LastCheckpoint(run_dir / "checkpoints"), StopOnSignal()
    callbacks = [BestCheckpoint(run_dir / "checkpoints"), last, stop, ExampleSheet()]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(progress_callback())
    callbacks += [build(node, f"callbacks.{name}") for name, node in config.callbacks.items()]
    trainer: L.Trainer = build(
        {
            **config.trainer,
            "max_time": parse_duration(config.trainer.get("max_time"), key="trainer.max_time"),
        },
        "trainer",
        default_root_dir=run_dir,
        callbacks=callbacks,
        logger=build(config.logger, "logger", save_dir=run_dir) if config.logger else False,
    )

    with stop.listening():
        trainer.fit(module, data, ckpt_path=config.ckpt_path, weights_only=True)
        if module.scores is None:  # a limit in steps can end before the first validation
            trainer.validate(module, data, verbose=False)
    if stop.received:
        advice = f"; to go on: ckpt_path={from_here(last.best_model_path)}" if last.best_model_path else ""
        log.warning("%s: stopped at step %d%s", stop.received.name, trainer.global_step, advice)
    finish(trainer, module, data, run_dir)
    return 128 + stop.received if stop.received else 0


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@entry_point
def main(cfg: DictConfig) -> None:
    config = typed(cfg)
    if exit_code := train(config, start_run(cfg, overwrite=config.ckpt_path is not None)):
        sys.exit(exit_code)


if __name__ == "__main__":
    main()
