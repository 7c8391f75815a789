"""TensorBoard's event file, for what Lightning's logger has no words for."""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import FileWriter


def is_shown(trainer: L.Trainer) -> bool:
    """Whether this process writes for TensorBoard."""
    return isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero


def event_file(logger: TensorBoardLogger) -> FileWriter:
    """The file of events; a new one where a training that has ended closed the last one."""
    return logger.experiment._get_file_writer()  # the public field is None then
