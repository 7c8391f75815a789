"""The run's row in TensorBoard's table of hyperparameters.

Written by hand: Lightning's `log_hyperparams(values, metrics)` says at once that the run was a success.
"""

import lightning as L
from omegaconf import OmegaConf
from torch.utils.tensorboard.summary import hparams

from cocoseg.config import Config
from cocoseg.config_checks import as_dict, shown
from cocoseg.overrides import Command, key_of
from cocoseg.training.module import SegmentationModule
from cocoseg.training.tensorboard_figures import event_file, tensorboard_of

ALWAYS = ("optimizer.lr", "data.batch_size", "seed")  # few: TensorBoard shows five columns at first
# Columns of every run outside of sweeps, because TensorBoard takes the columns of the first run it finds.
COMPARED = (
    *("experiment", "model", "model.base_channels", "model.encoder", "augment", "loss.class_weights"),
    *("optimizer.weight_decay", "schedule.name", "data.image_size", "data.subset.size", "trainer.max_time"),
    "tags",
)
# Beginnings of keys without influence on the result.
LEFT_OUT = ("run_dir", "ckpt_path", "resume", "budget.", "hydra", "logger", "data.root", "data.prepared_dir")
MIOU, LOSS = "validation_best/miou", "validation_best/loss"


class HyperparameterRow(L.Callback):
    """Puts the run into the table when training begins, and its best validation as soon as there is one."""

    def __init__(self, config: Config, command: Command):
        values = hyperparameters(config, command)
        self.table, self.row, self.success = hparams(values, dict.fromkeys((MIOU, LOSS), 0.0))
        self.best: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if board := tensorboard_of(trainer):
            event_file(board).add_summary(self.table, trainer.global_step)
            event_file(board).add_summary(self.row, trainer.global_step)
            board.log_metrics(self.best, trainer.global_step)  # a resumed run has them already

    def on_validation_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        scores = pl_module.scores
        if scores is None or trainer.sanity_checking or not scores.miou > self.best.get(MIOU, -1.0):
            return
        # A part of the validation set counts only as long as there is no more, as for the exported model.
        if pl_module.scores_are_partial and self.best:
            return
        self.best = {MIOU: scores.miou, LOSS: trainer.callback_metrics["val/loss"].item()}
        if board := tensorboard_of(trainer):
            board.log_metrics(self.best, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: SegmentationModule) -> None:
        if board := tensorboard_of(trainer):  # a failed run has no end yet: it may be resumed
            event_file(board).add_summary(self.success, trainer.global_step)

    def state_dict(self) -> dict[str, float]:
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        # Checkpoints of version 0.1.0 have other names for both.
        self.best = dict(zip((MIOU, LOSS), state_dict.values(), strict=False))


def hyperparameters(config: Config, command: Command) -> dict[str, float | str]:
    """Return ALWAYS and what a sweep chose; outside of a sweep ALWAYS, COMPARED and what was typed."""
    settings = OmegaConf.create(as_dict(config))
    typed = [key for key in map(key_of, command.overrides) if not key.startswith(LEFT_OUT)]
    keys = (*ALWAYS, *(map(key_of, command.swept) if command.swept else (*COMPARED, *typed)))
    values = {key: command.choices.get(key) or OmegaConf.select(settings, key) for key in keys}
    return {key: value if type(value) in (int, float) else shown(value) for key, value in values.items()}
