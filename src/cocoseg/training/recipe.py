"""The recipe of a training. Read from top to bottom."""

import logging

from lightning import seed_everything

from cocoseg import distributed
from cocoseg.budget.budget import no_time_left
from cocoseg.budget.open_run import Run
from cocoseg.budget.signals import stop_on_signal
from cocoseg.config import Config
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.networks.device import explain_out_of_memory
from cocoseg.training.batch_size import explain_batch_errors
from cocoseg.training.build import (
    build_module,
    build_trainer,
    open_loggers,
    read_start,
    try_parts,
    try_settings,
)
from cocoseg.training.callbacks import build_callbacks
from cocoseg.training.console import quiet_lightning
from cocoseg.training.finish import Exporter

log = logging.getLogger(__name__)


@distributed.explain_lost_process()
@explain_out_of_memory()
def train(config: Config, run: Run) -> float | None:
    """Prepare the data, train until the time is used, export. Returns the validation mIoU.

    Args:
        config: all settings.
        run: folder, budget and checkpoint of the run.

    Raises:
        CocosegError: bad input. If training has not begun, the run folder is unchanged.
        TrainingError: the loss is NaN, or memory runs out.
        SystemExit: a signal ended the training; the model so far is exported.
    """
    quiet_lightning()
    join_ranks(config, run)
    # A seed for each rank, so that their dropout differs; the first weights are copied from rank zero.
    seed_everything((config.seed + distributed.rank()) % 2**32, workers=True, verbose=False)
    # From here to `prepare_data`, which takes longer, wrong settings are refused.
    start = read_start(config, run)
    data = SegmentationDataModule(config, progress=lambda: run.budget.progress)
    exporter = Exporter(data, run)
    callbacks = build_callbacks(config, run, data, exporter)
    trainer = build_trainer(config, run, callbacks)
    try_settings(config, run)
    data.prepare_data()
    data.setup("fit")
    module = exporter.module = build_module(config, run, data, start)
    try_parts(trainer, module, data)
    is_over = has_no_time_left(run)
    with open_loggers([] if is_over else trainer.loggers):
        run.begin()  # all checks have passed: from here on the run folder is written to
        if is_over:
            return exporter.finish(trainer)
        data.write_training_images(run.folder, (run.checkpoint, (config.model or {}).get("weights")))
        with explain_batch_errors(data, trainer, run), stop_on_signal(callbacks):
            # weights_only is the safe mode of torch.load: optimizer and loops are restored, too.
            trainer.fit(module, data, ckpt_path=run.checkpoint, weights_only=True)
            if module.scores is None:  # a limit in steps can end before the first validation
                trainer.validate(module, data, verbose=False)
        return exporter.finish(trainer)


def join_ranks(config: Config, run: Run) -> None:
    """Connect the ranks of a training on several devices; all take rank zero's budget and checkpoint."""
    distributed.join_ranks(config.trainer)
    own = run.checkpoint, run.budget.to_dict(), run.budget.deadline
    run.checkpoint, ledger, deadline = distributed.broadcast(own)
    if distributed.rank() > 0:
        run.budget.follow(ledger, deadline)


def has_no_time_left(run: Run) -> bool:
    """Tell whether a resumed run has no time left to train, and say so."""
    if run.checkpoint is None or not distributed.from_rank_zero(run.budget.is_spent())[0]:
        return False
    log.warning(no_time_left(run.budget, "nothing left to train"))
    return True
