"""Train a segmentation model: `python train.py data.root=/data/coco`, or `--help`."""

import logging
import os
import sys
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cocoseg.cli import INTERRUPTED, TERMINATED, build, entry_point, start_run, typed
from cocoseg.config import Config, parse_duration

log = logging.getLogger("cocoseg.train")


def train(config: Config, run_dir: Path) -> int:
    """Prepare, train, export. Returns the exit code: not 0 where a signal ended the training early."""
    # Before torch is loaded: threads that spin while they wait starve the loaders, and on busy cores a
    # step took six times as long (docs/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Imported here, so that --help and mistakes in the configuration answer at once.
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from cocoseg.console import progress_callback, quiet_lightning
    from cocoseg.dashboard import ExampleSheet
    from cocoseg.datamodule import SegmentationDataModule
    from cocoseg.export import read_weights
    from cocoseg.finish import finish
    from cocoseg.module import SegmentationModule
    from cocoseg.spec import ModelSpec

    quiet_lightning()
    L.seed_everything(config.seed, workers=True, verbose=False)

    data = SegmentationDataModule(config)
    data.prepare_data()
    data.setup("fit")
    log.info("training on %d images, validating on %d", len(data.train_set), len(data.val_set))

    network = {**config.model, "num_classes": len(data.labels)}
    spec = ModelSpec(network, data.labels, tuple(config.data.image_size))
    if config.ckpt_path is not None:
        spec.require_same(read_weights(config.ckpt_path)["spec"], where=config.ckpt_path)
    module = SegmentationModule(
        net=build(network, "model"),
        loss=build(config.loss, "loss"),
        optimizer=partial(build, config.optimizer, "optimizer"),
        spec=spec,
    )

    # Two callbacks, because save_last=True beside a monitor leaves a stale file.
    shared = {
        "dirpath": run_dir / "checkpoints",
        "auto_insert_metric_name": False,
        "enable_version_counter": False,
    }
    callbacks = [
        ModelCheckpoint(filename="best", monitor="val/miou", mode="max", **shared),
        ModelCheckpoint(filename="last", save_on_exception=True, **shared),
        ExampleSheet(),
        *([progress_callback()] if config.trainer.get("enable_progress_bar", True) else []),
        *(build(node, f"callbacks.{name}") for name, node in config.callbacks.items()),
    ]
    trainer = build(
        {
            **config.trainer,
            "max_time": parse_duration(config.trainer.get("max_time"), key="trainer.max_time"),
        },
        "trainer",
        default_root_dir=run_dir,
        callbacks=callbacks,
        logger=build(config.logger, "logger", save_dir=run_dir) if config.logger else False,
    )

    exit_code = 0
    try:
        trainer.fit(module, data, ckpt_path=config.ckpt_path, weights_only=True)
    except SystemExit as signal:  # Lightning's answer to SIGTERM and Ctrl-C; last.ckpt is written
        exit_code = TERMINATED if isinstance(signal, SIGTERMException) else INTERRUPTED
        log.warning(
            "stopped at step %d; to go on: ckpt_path=%s", trainer.global_step, callbacks[1].best_model_path
        )
    finish(trainer, module, data, run_dir)
    return exit_code


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@entry_point
def main(cfg: DictConfig) -> None:
    config = typed(cfg)
    if exit_code := train(config, start_run(cfg)):
        sys.exit(exit_code)


if __name__ == "__main__":
    main()
